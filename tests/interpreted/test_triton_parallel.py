"""A vocabulary spread over processes, each of which runs the Triton kernels on its shard."""

import pytest
from processes import spawn
from triton_parallel_worker import everything


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes(processes, tmp_path):
    spawn(everything, processes, tmp_path)
