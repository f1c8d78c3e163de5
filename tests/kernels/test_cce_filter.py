"""The gradient filter: what it keeps, what it drops, and what it never touches."""

import pytest
import torch
from cce_reference import IGNORED, gradients, logits, make, naive, relative

from lossbook.kernels import cut_cross_entropy

ROWS = 128  # rows per filter block, a documented constant
IMPLS = [("torch", 1 << 26), ("torch", 1), ("dense", 1)]


def kept_columns(e, c, target, eps, bias=None):
    """Mask ``(N, V)`` from the definition, block of valid rows by block of valid rows."""
    valid = (target != IGNORED).nonzero()[:, 0]
    kept = torch.zeros(len(e), len(c), dtype=torch.bool)
    softmax = logits(e, c, bias).softmax(1)
    for rows in valid.split(ROWS):
        difference = softmax[rows].clone()
        difference[torch.arange(len(rows)), target[rows]] -= 1
        columns = difference.abs().amax(0) >= eps
        columns[target[rows]] = True
        kept[rows] = columns
    return kept


def filtered_gradients(e, c, target, bias, upstream, eps_e, eps_c):
    """Gradients of ``sum(upstream * loss)`` through the masked difference ``softmax - onehot``."""
    g = logits(e, c, bias).softmax(1).detach()
    valid = target != IGNORED
    g[valid, target[valid]] -= 1
    g *= (upstream * valid)[:, None]
    masks = [torch.ones_like(g) if eps is None else kept_columns(e, c, target, eps, bias) for eps in (eps_e, eps_c)]
    g_e, g_c = g * masks[0], g * masks[1]
    return g_e @ c.detach(), g_c.T @ e.detach(), g_c.sum(0)


@pytest.mark.parametrize(("impl", "chunk_bytes"), IMPLS)
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize(
    ("filter_eps", "pair"),
    [
        (2.0**-5, (2.0**-5, 2.0**-5)),
        ((2.0**-9, 2.0**-5), (2.0**-9, 2.0**-5)),
        ((2.0**-4, 2.0**-8), (2.0**-4, 2.0**-8)),
        ((None, 2.0**-6), (None, 2.0**-6)),
        ("auto", (2.0**-18, 2.0**-15)),
        ("fast", (2.0**-16, 2.0**-14)),
        (1.0, (1.0, 1.0)),
    ],
)
def test_gradients_are_those_of_the_kept_columns(filter_eps, pair, reduction, impl, chunk_bytes):
    e, c, b, target = make(330, 150, 6, bias=True, scale=2.0)
    loss = cut_cross_entropy(
        e, c, target, b, filter_eps=filter_eps, reduction=reduction, impl=impl, chunk_bytes=chunk_bytes
    )
    exact = naive(e, c, target, b, reduction=reduction)
    torch.testing.assert_close(loss, exact, rtol=1e-12, atol=1e-13)
    upstream = torch.rand_like(exact) + 0.5
    expected = filtered_gradients(e, c, target, b, upstream, *pair)
    assert relative(gradients(loss, e, c, b, upstream), expected) < 1e-12
    if pair[1] > 2.0**-10:
        dropped = ~kept_columns(e, c, target, pair[1], b)[target != IGNORED]
        assert dropped.any(), "the case must exercise the filter"


@pytest.mark.parametrize(("impl", "chunk_bytes"), IMPLS)
def test_wide_vocabulary_mixes_gathered_and_dense_spans(impl, chunk_bytes):
    """Hot columns in front, cold ones behind: some spans stay dense, some are gathered, some hold nothing."""
    e, c, _, target = make(140, 10_000, 4, ignored=0, scale=0.3)
    target, eps = target % 1000, 2.0**-12
    bias = torch.linspace(2200, -7800, 10_000, dtype=torch.float64).clamp(max=0).div(300).requires_grad_()
    loss = cut_cross_entropy(e, c, target, bias, filter_eps=eps, reduction="sum", impl=impl, chunk_bytes=chunk_bytes)
    share = kept_columns(e, c, target, eps, bias)[0, : 4 * 2048].view(-1, 2048).double().mean(1)
    assert share[0] > 0.7 and 0 < share[1] < 0.7 and share[3] == 0
    expected = filtered_gradients(e, c, target, bias, torch.ones(140, dtype=torch.float64), eps, eps)
    assert relative(gradients(loss, e, c, bias), expected) < 1e-12


@pytest.mark.parametrize(("impl", "chunk_bytes"), IMPLS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_full_c_is_exact_for_the_classifier(reduction, impl, chunk_bytes):
    e, c, b, target = make(300, bias=True, scale=2.0)
    exact = naive(e, c, target, b, reduction=reduction)
    upstream = torch.rand_like(exact)
    want = gradients(exact, e, c, b, upstream)
    options = {"filter_eps": 2.0**-4, "reduction": reduction, "impl": impl, "chunk_bytes": chunk_bytes}
    full_c = gradients(cut_cross_entropy(e, c, target, b, **options, filter_c=False), e, c, b, upstream)
    assert relative(full_c[1:], want[1:]) < 1e-12 < relative(full_c[:1], want[:1])
    full_e = gradients(cut_cross_entropy(e, c, target, b, **options, filter_e=False), e, c, b, upstream)
    assert relative(full_e[:1], want[:1]) < 1e-12 < relative(full_e[1:2], want[1:2])


@pytest.mark.parametrize("options", [{}, {"softcap": 4.0}, {"label_smoothing": 0.1}, {"z_loss": 0.01}], ids=str)
def test_the_filter_never_changes_loss_or_lse(options):
    e, c, b, target = make(300, bias=True)
    exact = cut_cross_entropy(e, c, target, b, reduction="none", return_lse=True, **options)
    for eps in ("auto", "fast", 0.5):
        filtered = cut_cross_entropy(e, c, target, b, reduction="none", return_lse=True, filter_eps=eps, **options)
        assert all(torch.equal(x, y) for x, y in zip(exact, filtered, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_error_grows_with_eps_and_vanishes_with_it(reduction):
    e, c, _, target = make(384, 400, 16, scale=1.5)
    exact = gradients(naive(e, c, target, reduction=reduction).sum(), e, c)
    errors = []
    for exponent in (60, 18, 14, 10, 6, 2):
        loss = cut_cross_entropy(e, c, target, filter_eps=2.0**-exponent, reduction=reduction).sum()
        errors.append([relative([x], [y]) for x, y in zip(gradients(loss, e, c), exact, strict=True)])
    assert max(errors[0]) < 1e-12
    for coarse, fine in zip(errors[1:], errors[:-1], strict=True):
        assert coarse[0] >= fine[0] - 1e-12 and coarse[1] >= fine[1] - 1e-12
    assert min(errors[-1]) > 1e-3


def test_the_largest_eps_keeps_only_targets():
    e, c, b, target = make(100, bias=True, ignored=0)
    _, d_c, d_b = gradients(cut_cross_entropy(e, c, target, b, filter_eps=1.0, reduction="sum"), e, c, b)
    used = torch.zeros(len(c), dtype=torch.bool)
    used[target] = True
    assert not used.all()
    assert (d_c[used].norm(dim=1) > 0).all() and (d_c[~used] == 0).all() and (d_b[~used] == 0).all()


def test_the_test_is_made_before_scaling():
    """A mean over many rows, small weights or a small upstream gradient must not shrink what is kept."""
    e, c, _, target = make(300, 2000, scale=2.0)
    weight = torch.full((len(c),), 1e-6, dtype=torch.float64)
    kept = []
    for scale, options in (
        (1, {"reduction": "sum"}),
        (1, {}),
        (1e-9, {"reduction": "sum"}),
        (1, {"reduction": "sum", "weight": weight}),
    ):
        loss = scale * cut_cross_entropy(e, c, target, filter_eps=2.0**-4, **options)
        kept.append(gradients(loss, e, c)[1].norm(dim=1) > 0)
    assert not kept[0].all()
    assert all(torch.equal(kept[0], other) for other in kept[1:])


@pytest.mark.parametrize(("impl", "chunk_bytes"), IMPLS)
def test_label_smoothing_stays_outside_the_filter(impl, chunk_bytes):
    e, c, b, target = make(300, bias=True, scale=2.0)
    alpha, eps = 0.2, 2.0**-5
    loss = cut_cross_entropy(
        e, c, target, b, filter_eps=eps, label_smoothing=alpha, reduction="sum", impl=impl, chunk_bytes=chunk_bytes
    )
    valid = target != IGNORED
    # The kept part of softmax - (1 - alpha) onehot, and all of the uniform part.
    g = logits(e, c, b).softmax(1).detach() * valid[:, None]
    g[valid, target[valid]] -= 1 - alpha
    g *= kept_columns(e, c, target, eps, b)
    g[valid] -= alpha / len(c)
    expected = (g @ c.detach(), g.T @ e.detach(), g.sum(0))
    assert relative(gradients(loss, e, c, b), expected) < 1e-12


@pytest.mark.parametrize(("impl", "chunk_bytes"), IMPLS)
def test_label_smoothing_with_a_softcap_is_exact(impl, chunk_bytes):
    e, c, b, target = make(300, bias=True, scale=2.0)
    options = {"label_smoothing": 0.2, "softcap": 5.0}
    loss = cut_cross_entropy(e, c, target, b, filter_eps=0.1, impl=impl, chunk_bytes=chunk_bytes, **options)
    assert relative(gradients(loss, e, c, b), gradients(naive(e, c, target, b, **options), e, c, b)) < 1e-12


@pytest.mark.parametrize("filter_eps", [2.0**-6, (2.0**-8, 2.0**-4)])
@pytest.mark.parametrize("options", [{"softcap": 3.0}, {"z_loss": 0.1}, {"softcap": 3.0, "z_loss": 0.1}], ids=str)
def test_schedules_agree_with_dense_under_a_filter(options, filter_eps):
    e, c, b, target = make(300, bias=True, scale=2.0)
    results = [
        gradients(
            cut_cross_entropy(e, c, target, b, filter_eps=filter_eps, impl=impl, chunk_bytes=size, **options), e, c, b
        )
        for impl, size in IMPLS
    ]
    assert relative(results[0], results[2]) < 1e-12
    assert relative(results[1], results[2]) < 1e-12


def test_few_entries_of_a_row_reach_a_threshold():
    e, c, _, _ = make(200, 3000, 4, scale=3.0)
    softmax = logits(e, c).softmax(1)
    for eps in (2.0**-4, 2.0**-8, 2.0**-10):
        assert (softmax >= eps).sum(1).max() <= int(1 / eps)


def test_starvation_of_unused_words_at_initialization():
    """With V > 1/eps nothing but targets is kept at a flat softmax; FullC gives every word its gradient."""
    e, c, _, target = make(64, 600, 8, ignored=0, scale=1e-3)
    used = torch.zeros(600, dtype=torch.bool)
    used[target] = True
    exact = torch.autograd.grad(naive(e, c, target), c)[0]
    filtered = torch.autograd.grad(cut_cross_entropy(e, c, target, filter_eps=2.0**-8), c)[0]
    full_c = torch.autograd.grad(cut_cross_entropy(e, c, target, filter_eps=2.0**-8, filter_c=False), c)[0]
    assert (filtered[~used] == 0).all() and (exact[~used].norm(dim=1) > 0).all()
    assert relative([full_c], [exact]) < 1e-12
