"""What the code around an engine owes it."""

import pytest
import torch
from cce_reference import gradients, make, naive, relative

from lossbook.kernels import VocabParallel, cut_cross_entropy
from lossbook.kernels.cross_entropy.engines import TorchEngine


@pytest.fixture
def maps(monkeypatch):
    """Let the torch engine record a map where a filter is set, and collect what its backward pass gets back."""
    forward, backward, returned = TorchEngine.forward_statistics, TorchEngine.backward_statistics, []

    def empty_column_map(problem):
        filtered = problem.eps_e is not None or problem.eps_c is not None
        return problem.e.new_empty(2, 3, 4, dtype=torch.int32) if filtered else None

    def forward_statistics(problem):
        column_map = empty_column_map(problem)
        return forward(problem)._replace(column_map=None if column_map is None else column_map.fill_(7))

    def backward_statistics(problem, saved, *args, **kwargs):
        returned.append(saved.column_map)
        return backward(problem, saved, *args, **kwargs)

    for function in (empty_column_map, forward_statistics, backward_statistics):
        monkeypatch.setattr(TorchEngine, function.__name__, staticmethod(function))
    return returned


@pytest.mark.parametrize("compiled", [False, True])
def test_a_map_comes_back_to_the_engine_that_recorded_it(compiled, maps):
    e, c, b, target = make(bias=True, dtype=torch.float32)

    def loss(e, c, b, eps):
        return cut_cross_entropy(e, c, target, b, filter_eps=eps, return_entropy=True)[0]

    torch._dynamo.reset()
    call = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
    got = gradients(call(e, c, b, 1e-30), e, c, b)
    assert relative(got, gradients(naive(e, c, target, b), e, c, b)) < 1e-6
    assert len(maps) == 1 and torch.equal(maps[0], torch.full((2, 3, 4), 7, dtype=torch.int32))
    gradients(call(e, c, b, None), e, c, b)
    assert maps[1:] == [None]


def test_a_map_comes_back_to_a_shard(maps):
    e, c, b, target = make(bias=True)
    shard = VocabParallel.from_vocab(len(c))
    loss = cut_cross_entropy(e, c, target, b, filter_eps=1e-30, vocab_parallel=shard)
    assert relative(gradients(loss, e, c, b), gradients(naive(e, c, target, b), e, c, b)) < 1e-12
    assert len(maps) == 1 and maps[0].shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [("", (0.1, 0.2)), ("e", (None, 0.2)), ("c", (0.1, 0.2)), ("c b", (0.1, None)), ("e c b", (None, None))],
)
def test_a_filter_of_a_gradient_that_nobody_needs_is_not_asked_for(frozen, expected, monkeypatch):
    asked, forward = [], TorchEngine.forward_statistics

    def spy(problem):
        asked.append((problem.eps_e, problem.eps_c))
        return forward(problem)

    monkeypatch.setattr(TorchEngine, "forward_statistics", staticmethod(spy))
    e, c, b, target = make(bias=True)
    for name, leaf in (("e", e), ("c", c), ("b", b)):
        leaf.requires_grad_(name not in frozen.split())
    cut_cross_entropy(e, c, target, b, filter_eps=(0.1, 0.2), reduction="none")
    with torch.no_grad():
        cut_cross_entropy(e, c, target, b, filter_eps=(0.1, 0.2), reduction="none")
    assert asked == [expected, (None, None)]
