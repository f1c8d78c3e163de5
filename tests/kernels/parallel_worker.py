"""What each process of the vocabulary-parallel tests runs; importable, so that it can be spawned."""

import torch
import torch.distributed as dist
from cce_reference import IGNORED, gradients, make, naive, relative

from lossbook.kernels import VocabParallel, cut_cross_entropy

VOCAB = 101
CASES = [
    {"reduction": reduction, **options}
    for reduction in ("mean", "sum", "none")
    for options in (
        {},
        {"label_smoothing": 0.1},
        {"z_loss": 0.05, "softcap": 4.0, "temperature": 0.7},
        {"label_smoothing": 0.1, "softcap": 4.0, "weight": torch.linspace(0.2, 2, VOCAB, dtype=torch.float64)},
        {"chunk_bytes": 1, "temperature": 2.0},
    )
]
ALL_RESULTS = {"return_lse": True, "return_entropy": True, "return_argmax": True}


def local_leaves(e, c, b, shard):
    rows = slice(shard.start, shard.stop)
    return (value.detach().clone().requires_grad_() for value in (e, c[rows], b[rows]))


def equals_the_whole_vocabulary(rank, processes):
    """Loss, log-sum-exp and all gradients, for every case, on an even split."""
    e, c, b, target = make(150, VOCAB, bias=True)
    shard = VocabParallel.from_vocab(VOCAB)
    check_cases(e, c, b, target, shard)


def uneven_shards_and_a_process_without_targets(rank, processes):
    """The last process holds most rows, and targets are all in the first one's."""
    e, c, b, target = make(150, VOCAB, bias=True)
    target = torch.where(target >= 0, target % 3, target)
    edges = [*range(0, 3 * processes, 3), VOCAB]
    shard = VocabParallel(edges[rank], edges[rank + 1])
    assert shard.vocab_size() == VOCAB
    check_cases(e, c, b, target, shard)


def check_cases(e, c, b, target, shard):
    rows = slice(shard.start, shard.stop)
    for options in CASES:
        expected_options = {key: value for key, value in options.items() if key != "chunk_bytes"}
        own_e, own_c, own_b = local_leaves(e, c, b, shard)
        *ours, argmax = cut_cross_entropy(own_e, own_c, target, own_b, vocab_parallel=shard, **ALL_RESULTS, **options)
        *whole, expected = cut_cross_entropy(e, c, target, b, impl="dense", **ALL_RESULTS, **expected_options)
        torch.testing.assert_close(whole[0], naive(e, c, target, b, **expected_options), rtol=1e-12, atol=1e-13)
        for value, want in zip(ours, whole, strict=True):
            torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-13, msg=str(options))
        assert torch.equal(argmax, expected), options
        # A random upstream gradient, the same on every process, for the loss, the log-sum-exp and the entropy.
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in ours]
        got, want = (sum((x * up).sum() for x, up in zip(values, upstream, strict=True)) for values in (ours, whole))
        got, want = gradients(got, own_e, own_c, own_b), gradients(want, e, c, b)
        assert relative(got, (want[0], want[1][rows], want[2][rows])) < 1e-12, options
        # Without what was not asked for, the rest is the same.
        loss = cut_cross_entropy(own_e, own_c, target, own_b, vocab_parallel=shard, **options)
        torch.testing.assert_close(loss, ours[0], rtol=1e-14, atol=0)


def frozen_sides_and_low_precision(rank, processes):
    e, c, b, target = make(60, VOCAB, bias=True)
    shard = VocabParallel.from_vocab(VOCAB)
    own_e, own_c, own_b = local_leaves(e, c, b, shard)
    own_c.requires_grad_(False)
    cut_cross_entropy(own_e, own_c, target, own_b.detach(), vocab_parallel=shard).backward()
    assert own_c.grad is None
    expected = torch.autograd.grad(naive(e, c, target, b), e)
    assert relative([own_e.grad], expected) < 1e-12
    low_e, low_c = own_e.detach().bfloat16().requires_grad_(), own_c.detach().bfloat16().requires_grad_()
    loss = cut_cross_entropy(low_e, low_c, target, vocab_parallel=shard)
    loss.backward()
    assert loss.dtype == torch.float32 and low_e.grad.dtype == low_c.grad.dtype == torch.bfloat16
    # The partial gradients are summed in float32: the error is that of one rounding.
    exact_e = e.detach().bfloat16().double().requires_grad_()
    (exact,) = torch.autograd.grad(naive(exact_e, c.detach().bfloat16().double(), target), exact_e)
    rounding = relative([exact.bfloat16().double()], [exact])
    assert relative([low_e.grad.double()], [exact]) <= 1.05 * rounding + 1e-6


def equal_logits_masked_shards_and_broken_rows(rank, processes):
    """The argmax is the first of equal logits over all processes; a process may have nothing but masked words."""
    shard = VocabParallel.from_vocab(VOCAB)
    rows = slice(shard.start, shard.stop)
    e, c, b, target = make(40, VOCAB, 5, bias=True)
    zeros = torch.zeros_like(c[rows])
    *_, argmax = cut_cross_entropy(e, zeros, target, vocab_parallel=shard, **ALL_RESULTS)
    assert torch.equal(argmax, torch.where(target == IGNORED, -1, 0))
    # Every process has the same rows, in shards of unequal size, whose products may round differently.
    *_, argmax = cut_cross_entropy(e, c[: shard.stop - shard.start], target, vocab_parallel=shard, **ALL_RESULTS)
    assert (argmax < -(-VOCAB // processes)).all()
    with torch.no_grad():
        b[: -(-VOCAB // processes)] = -torch.inf  # all words of the first process, if there are others
        b[-2:] = 0
        target.fill_(VOCAB - 1)[::7] = IGNORED
    own_e, own_c, own_b = local_leaves(e, c, b, shard)
    *ours, argmax = cut_cross_entropy(own_e, own_c, target, own_b, vocab_parallel=shard, **ALL_RESULTS)
    *whole, expected = cut_cross_entropy(e, c, target, b, impl="dense", **ALL_RESULTS)
    torch.testing.assert_close(ours, whole, rtol=1e-12, atol=1e-13)
    assert torch.equal(argmax, expected)
    got, want = (
        gradients(sum(x.sum() for x in values), *at)
        for values, at in ((ours, (own_e, own_c, own_b)), (whole, (e, c, b)))
    )
    assert relative(got, (want[0], want[1][rows], want[2][rows])) < 1e-12
    with torch.no_grad():
        own_e[3] = torch.nan
    *values, argmax = cut_cross_entropy(own_e, own_c, target, own_b, vocab_parallel=shard, **ALL_RESULTS)
    assert all(value[3].isnan() for value in values[1:]) and argmax[3] < VOCAB


def partial_gradients_add_up(rank, processes):
    """Without the sum over the processes each keeps its own part of the gradient of ``e``; the parts add up."""
    e, c, b, target = make(60, VOCAB, bias=True)
    results = {}
    for reduce_e_grad in (True, False):
        shard = VocabParallel.from_vocab(VOCAB, None, reduce_e_grad)
        own_e, own_c, own_b = local_leaves(e, c, b, shard)
        loss, ours = cut_cross_entropy(own_e, own_c, target, own_b, vocab_parallel=shard, return_entropy=True)
        results[reduce_e_grad] = gradients(loss + ours.sum(), own_e, own_c, own_b)
    (whole, *others), (part, *same) = results[True], results[False]
    assert all(torch.equal(x, y) for x, y in zip(others, same, strict=True))
    assert processes == 1 or relative([part], [whole]) > 1e-3
    dist.all_reduce(part)
    assert relative([part], [whole]) < 1e-14


def gaps_and_targets_are_checked(rank, processes):
    e, c, _, target = make(10, VOCAB)
    gap = VocabParallel(30 * rank, 30 * rank + 20)
    message = ""
    try:
        cut_cross_entropy(e, c[gap.start : gap.stop], target, vocab_parallel=gap)
    except ValueError as error:
        message = str(error)
    assert "without gap or overlap" in message
    shard = VocabParallel.from_vocab(VOCAB)
    try:
        cut_cross_entropy(e, c[shard.start : shard.stop], target.clamp(min=VOCAB), vocab_parallel=shard)
    except ValueError as error:
        message = str(error)
    assert f"[0, {VOCAB})" in message


def second_derivative_raises(rank, processes):
    e, c, _, target = make(10, VOCAB)
    shard = VocabParallel.from_vocab(VOCAB)
    loss = cut_cross_entropy(e, c[shard.start : shard.stop], target, vocab_parallel=shard)
    (d_e,) = torch.autograd.grad(loss, e, create_graph=True)
    message = ""
    try:
        d_e.sum().backward()
    except RuntimeError as error:
        message = str(error)
    assert "no second derivative" in message


ALL = (
    equals_the_whole_vocabulary,
    uneven_shards_and_a_process_without_targets,
    frozen_sides_and_low_precision,
    equal_logits_masked_shards_and_broken_rows,
    partial_gradients_add_up,
    gaps_and_targets_are_checked,
    second_derivative_raises,
)


def everything(rank, processes):
    """All checks in one set of processes: starting them costs more than running them."""
    for check in ALL:
        if processes > 1 or check is not gaps_and_targets_are_checked:
            check(rank, processes)
