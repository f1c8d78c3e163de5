"""The sparse attention kernels compile for every target, without a GPU, and fit it."""

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from lossbook.bench import compiled
from lossbook.bench.sparse_attention.builds import sparse_attention_builds

KERNELS = {
    "append_kernel", "score_kernel", "select_kernel", "histogram_kernel", "narrow_kernel", "count_kernel",
    "write_kernel", "decode_kernel", "join_kernel",
}  # fmt: skip


@pytest.mark.parametrize("architecture", compiled.ARCHITECTURES)
def test_attention_of_wide_numbers_stays_in_registers(architecture):
    builds = [
        build for build in sparse_attention_builds(architecture, "fp32") if build.kernel.__name__ == "decode_kernel"
    ]
    paged = [build for build in builds if "paged" in build.variant]
    assert len(paged) == 6
    for entry in map(compiled.compile_build, paged):
        assert entry.spilled_bytes == 0, entry
        assert entry.shared_bytes <= compiled.SHARED_BYTES[architecture], entry


@pytest.mark.parametrize("architecture", compiled.ARCHITECTURES)
def test_every_kernel(architecture):
    builds = list(sparse_attention_builds(architecture, "bf16"))
    assert {build.kernel.__name__ for build in builds} == KERNELS
    for entry in map(compiled.compile_build, builds):
        assert entry.registers > 0
        assert entry.spilled_bytes == 0, entry
        assert entry.shared_bytes <= compiled.SHARED_BYTES[architecture], entry
        # The histogram of a long row is summed by atomics, which is exact for integers only.
        assert entry.float_atomics == 0, entry
        assert (entry.matrix_instructions > 0) == (entry.kernel == "decode_kernel"), entry
