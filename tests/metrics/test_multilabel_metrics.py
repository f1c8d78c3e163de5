"""Precision and recall of the first k labels, against torchmetrics and by hand."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.retrieval import retrieval_precision, retrieval_recall

from lossbook.metrics import multilabel_precision_at_k, multilabel_recall_at_k

BOTH = (multilabel_precision_at_k, multilabel_recall_at_k)

each_metric = pytest.mark.parametrize("metric", BOTH, ids=lambda metric: metric.__name__)


@pytest.fixture
def problem(generator):
    target = torch.rand(30, 40, generator=generator) < 0.1
    target[3] = False
    return torch.randn(30, 40, generator=generator, dtype=torch.float64), target


@pytest.mark.parametrize("k", [1, 5, 40])
def test_equal_torchmetrics(problem, k):
    """Of positive scores: theirs takes a label with a negative one for not found."""
    rows = list(zip(problem[0].exp(), problem[1], strict=True))
    precision = torch.stack([retrieval_precision(s, y, top_k=k) for s, y in rows]).mean()
    recall = torch.stack([retrieval_recall(s, y, top_k=k) for s, y in rows if y.any()]).mean()
    torch.testing.assert_close(multilabel_precision_at_k(*problem, k), precision)
    torch.testing.assert_close(multilabel_recall_at_k(*problem, k), recall)


def test_queries_without_right_labels_count_in_precision_only():
    scores, target = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), torch.tensor([[1, 0, 1], [0, 0, 0]])
    assert multilabel_precision_at_k(scores, target, 2) == 0.25
    assert multilabel_recall_at_k(scores, target, 2) == 0.5


def test_bounds_when_k_and_the_number_of_right_labels_differ():
    scores, target = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[1, 1, 0, 0]])
    assert (multilabel_precision_at_k(scores, target, 4), multilabel_recall_at_k(scores, target, 4)) == (0.5, 1)
    assert (multilabel_precision_at_k(scores, target, 1), multilabel_recall_at_k(scores, target, 1)) == (1, 0.5)


def test_equal_scores_are_no_success():
    scores, target = torch.zeros(1, 4), torch.tensor([[True, True, False, False]])
    assert [multilabel_recall_at_k(scores, target, k).item() for k in (1, 2, 3, 4)] == [0, 0, 0.5, 1]


@each_metric
def test_returns_a_tensor_of_the_default_dtype_for_any_input(metric, problem):
    scores, target = problem
    expected = metric(scores, target, 3)
    assert expected.shape == () and expected.dtype == torch.float32
    for s, y in ((scores.numpy(), target.numpy()), (scores, target.float()), (scores.requires_grad_(), target.int())):
        value = metric(s, y, 3)
        assert value == expected and not value.requires_grad
    assert metric(scores.half(), target, 3).dtype == torch.float32


S, Y = torch.rand(3, 4), torch.ones(3, 4)


@each_metric
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((S[0], Y[0], 1), ValueError, r"scores must have shape \(N, L\) = \(\*, \*\), got \(4,\)"),
        ((S[:0], Y[:0], 1), ValueError, r"scores must have shape \(N, L\) with N >= 1, got \(0, 4\)"),
        ((S, Y[:2], 1), ValueError, r"target must have shape \(N, L\) = \(3, 4\), got \(2, 4\)"),
        ((S, Y + 1, 1), ValueError, "target must be 0 or 1, got 2.0"),
        ((S * torch.nan, Y, 1), ValueError, "scores must not be NaN"),
        ((S, Y, 0), ValueError, r"k must lie in \[1, L\] = \[1, 4\], got 0"),
        ((S, Y, 5), ValueError, r"k must lie in \[1, L\] = \[1, 4\], got 5"),
        ((S, Y, np.float64(2)), TypeError, "k must be an int, got float64"),
    ],
)
def test_bad_arguments_are_named(metric, arguments, error, message):
    with pytest.raises(error, match=message):
        metric(*arguments)


def test_recall_needs_a_right_label():
    with pytest.raises(ValueError, match="target must have a right label for some query, got none in 3"):
        multilabel_recall_at_k(S, 0 * Y, 1)
