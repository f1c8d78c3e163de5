"""A vocabulary spread over processes gives what one process gives."""

from itertools import pairwise

import pytest
import torch
from cce_reference import gradients, make, relative
from parallel_worker import everything
from processes import spawn

from lossbook.kernels import VocabParallel, cut_cross_entropy


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes(processes, tmp_path):
    spawn(everything, processes, tmp_path)


def test_without_a_process_group_one_process_holds_everything():
    e, c, b, target = make(bias=True)
    shard = VocabParallel.from_vocab(len(c))
    assert (shard.start, shard.stop, shard.vocab_size()) == (0, len(c), len(c))
    options = {"label_smoothing": 0.1, "temperature": 0.7, "return_entropy": True, "return_argmax": True}
    *parallel, argmax = cut_cross_entropy(e, c, target, b, vocab_parallel=shard, **options)
    *alone, expected = cut_cross_entropy(e, c, target, b, **options)
    torch.testing.assert_close(parallel, alone, rtol=1e-13, atol=0)
    assert torch.equal(argmax, expected)
    got, want = (gradients(loss + entropy.sum(), e, c, b) for loss, entropy in (parallel, alone))
    assert relative(got, want) < 1e-12


@pytest.mark.parametrize(("rows", "world"), [(101, 3), (8, 4), (5, 5), (50_257, 7)])
def test_shares_cover_the_vocabulary_evenly(rows, world, monkeypatch):
    shards = []
    for rank in range(world):
        monkeypatch.setattr(
            "lossbook.kernels.cross_entropy.parallel._rank_and_world", lambda group, rank=rank: (rank, world)
        )
        shards.append(VocabParallel.from_vocab(rows))
    assert shards[0].start == 0 and shards[-1].stop == rows
    assert all(left.stop == right.start for left, right in pairwise(shards))
    sizes = [shard.stop - shard.start for shard in shards]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
    with pytest.raises(ValueError, match=f"vocab_size must be at least the number of processes = {world}, got 1"):
        VocabParallel.from_vocab(1)
