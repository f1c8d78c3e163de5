"""One policy for the losses that have positives: a batch without any gives zero, connected, with one warning."""

import warnings

import pytest
import torch

from lossbook import losses
from lossbook.losses import NoPositivesWarning, contrastive, metric, multilabel, replay, retrieval

FAMILY = [name for module in (multilabel, retrieval, contrastive, metric, replay) for name in module.__all__]
# Operators, numbers and distillation: nothing in them is a positive of something.
WITHOUT_POSITIVES = {
    *("soft_topk", "log_soft_topk", "temperature_penalty", "optimal_temperature", "mix_embeddings"),
    *("positivity_threshold", "hpcr_scale", "proxy_distillation", "relation_distillation"),
}
# At least two examples, each of which has its positive by construction: there is no batch without one.
ALWAYS_WITH_POSITIVES = {"nt_xent", "nt_xent_decoupled", "amcl", "pcr_with_pairs"}
# Positives are an argument of its own, so a caller who has none knows it.
GIVEN_ITS_POSITIVES = {"mann_whitney"}
REDUCTIONS = ("mean", "sum", "none")


def labels(loss, **options):
    """Queries, none of which has a right label."""
    return lambda x, **k: loss(x[:, :4], torch.zeros(len(x), 4), **options, **k)


def no_rows(loss, **options):
    """Each row has its positive, so the only batch without one has no rows."""
    return lambda x, **k: loss(x[:0], **options, **k)


def proxies(x, **k):
    return losses.pcr(x[:0], torch.ones(3, x.shape[1], dtype=x.dtype), torch.zeros(0, dtype=torch.int64), **k)


def no_pairs(x, **k):
    return losses.pair_loss(x, torch.zeros_like(x), mask=torch.zeros(x.shape, dtype=torch.bool), **k)


ALONE = torch.zeros(1, dtype=torch.int64)
CALLS = {
    "multilabel_softmax": labels(losses.multilabel_softmax),
    "decoupled_softmax": labels(losses.decoupled_softmax),
    "soft_topk_loss": labels(losses.soft_topk_loss, k=2),
    "info_nce": no_rows(losses.info_nce),
    "mann_whitney_retrieval": no_rows(losses.mann_whitney_retrieval),
    "ranknet_retrieval": no_rows(losses.ranknet_retrieval),
    "siglip": no_rows(losses.siglip),
    "sup_con": lambda x, **k: losses.sup_con(x, torch.arange(len(x)), **k),
    "pair_loss": no_pairs,
    "metric_loss": lambda x, **k: losses.metric_loss(x[:1], ALONE, **k),
    "metrix_embed_loss": lambda x, **k: losses.metrix_embed_loss(x[:1], ALONE, lam=0.5, partner=ALONE, **k),
    "pcr": proxies,
}
every_loss = pytest.mark.parametrize("name", CALLS)


@pytest.fixture
def inputs(generator):
    return torch.randn(3, 6, generator=generator, dtype=torch.float64, requires_grad=True)


def test_every_loss_of_the_family_is_sorted():
    """A new loss of these files must say what it does without positives."""
    groups = (set(CALLS), WITHOUT_POSITIVES, ALWAYS_WITH_POSITIVES, GIVEN_ITS_POSITIVES)
    assert set(FAMILY) == set.union(*groups)
    assert len(FAMILY) == sum(map(len, groups)), "each name belongs to one group"


@every_loss
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_zero_connected_to_the_graph_with_one_warning(name, reduction, inputs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = CALLS[name](inputs, reduction=reduction)
    assert [type(each.message) for each in caught] == [NoPositivesWarning], [str(each.message) for each in caught]
    assert "the loss is zero" in str(caught[0].message)
    assert caught[0].filename == __file__, "the warning points at the call"
    assert (value == 0).all() and value.isfinite().all()
    assert reduction == "none" or value.shape == ()
    assert value.requires_grad
    value.sum().backward()
    assert inputs.grad is not None and (inputs.grad == 0).all()


@every_loss
def test_a_run_may_refuse_such_batches(name, inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoPositivesWarning)
        with pytest.raises(NoPositivesWarning):
            CALLS[name](inputs)


@every_loss
def test_in_half_precision_too(name, inputs):
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.warns(NoPositivesWarning):
            value = CALLS[name](inputs.detach().to(dtype))
        assert value == 0 and value.dtype == dtype


@every_loss
def test_without_a_warning_when_compiled(name, inputs):
    def call(x):
        return CALLS[name](x)

    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoPositivesWarning)
        assert torch.compile(call, backend="eager", fullgraph=True, dynamic=False)(inputs) == 0


@pytest.mark.parametrize("name", ["nt_xent", "nt_xent_decoupled", "amcl", "pcr_with_pairs"])
def test_too_small_a_batch_is_an_error_where_every_example_has_its_positive(name):
    one = torch.ones(1, 4)
    calls = {
        "nt_xent": lambda: losses.nt_xent(one, one),
        "nt_xent_decoupled": lambda: losses.nt_xent_decoupled(one, one),
        "amcl": lambda: losses.amcl(one[None], one[None], 0.5),
        "pcr_with_pairs": lambda: losses.pcr_with_pairs(one, one, ALONE),
    }
    assert set(calls) == ALWAYS_WITH_POSITIVES
    with pytest.raises(ValueError, match="must have shape"):
        calls[name]()


def test_no_positives_are_an_error_where_they_are_an_argument():
    with pytest.raises(ValueError, match=r"pos must have shape \(P,\) with P >= 1, got \(0,\)"):
        losses.mann_whitney(torch.ones(0), torch.ones(3))


def test_pair_losses_learn_from_negatives_alone_and_do_not_warn(inputs):
    """The one exception: what has negatives but no positive still teaches them apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in (
            losses.metric_loss(inputs, torch.arange(3), margin=-2.0),
            losses.metrix_embed_loss(inputs, torch.arange(3), lam=0.5, partner=torch.arange(3), margin=-2.0),
            losses.pair_loss(inputs, torch.zeros(3, 6), margin=-9.0),
        ):
            (gradient,) = torch.autograd.grad(loss, inputs)
            assert loss > 0 and gradient.abs().max() > 0


@pytest.mark.parametrize("name", sorted(set(CALLS) | ALWAYS_WITH_POSITIVES))
def test_the_docstring_says_so(name):
    text = " ".join(getattr(losses, name).__doc__.split())
    if name in CALLS:
        assert "NoPositivesWarning" in text
    else:
        assert "B >= 2" in text or "N >= 2" in text
