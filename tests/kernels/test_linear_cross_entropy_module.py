"""The head as a module."""

import copy

import pytest
import torch
from cce_reference import make
from torch import nn

from lossbook.kernels import LinearCrossEntropy, cut_cross_entropy


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_heads_checkpoint_loads(bias):
    linear = nn.Linear(6, 70, bias=bias, dtype=torch.float64)
    head = LinearCrossEntropy(6, 70, bias=bias, weight=torch.ones(70), dtype=torch.float64)
    head.load_state_dict(linear.state_dict())
    e, _, _, target = make()
    expected = nn.functional.cross_entropy(linear(e), target)
    torch.testing.assert_close(head(e, target), expected, rtol=1e-12, atol=0)
    assert head.state_dict().keys() == linear.state_dict().keys()


def test_tied_weights():
    embedding = nn.Embedding(70, 6)
    head = LinearCrossEntropy(6, 70)
    head.weight = embedding.weight
    head(torch.randn(4, 6), torch.tensor([1, 2, 3, 4])).backward()
    assert embedding.weight.grad is not None


def test_every_keyword_reaches_the_function():
    e, _, _, target = make(60)
    weight = torch.linspace(0.5, 1.5, 70)
    options = {
        "softcap": 5.0,
        "temperature": 0.8,
        "reduction": "none",
        "label_smoothing": 0.1,
        "z_loss": 0.1,
        "shift": 2,
        "return_lse": True,
        "return_entropy": True,
        "return_argmax": True,
        "filter_eps": 0.01,
        "filter_e": False,
        "filter_c": True,
        "ignore_index": 4,
        "chunk_bytes": 1,
        "impl": "torch",
        "accum_dtype": torch.float64,
    }
    head = LinearCrossEntropy(6, 70, weight=weight, **options)
    target = target.clamp(min=0)
    got = head(e.float(), target)
    expected = cut_cross_entropy(e.float(), head.weight, target, weight=weight, **options)
    assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))
    assert {*options, "weight", "vocab_parallel"} == set(cut_cross_entropy.__kwdefaults__), "a keyword is missing here"


def test_parameters_start_as_those_of_linear():
    torch.manual_seed(0)
    head = LinearCrossEntropy(64, 5000, bias=True)
    bound = 64**-0.5
    for parameter in head.parameters():
        assert parameter.abs().max() <= bound and parameter.abs().max() > 0.99 * bound
    before = head.weight.clone()
    head.reset_parameters()
    assert not torch.equal(before, head.weight)


def test_repr_shows_what_is_not_the_default():
    assert repr(LinearCrossEntropy(2, 4)) == "LinearCrossEntropy(in_features=2, out_features=4, bias=False)"
    head = LinearCrossEntropy(2, 4, bias=True, shift=1, filter_eps="auto")
    assert repr(head) == ("LinearCrossEntropy(in_features=2, out_features=4, bias=True, shift=1, filter_eps='auto')")


def test_it_copies_moves_and_compiles():
    head = copy.deepcopy(LinearCrossEntropy(6, 70, bias=True, weight=torch.ones(70))).double()
    assert head.class_weight.dtype == head.weight.dtype == torch.float64
    e, _, _, target = make()
    torch._dynamo.reset()
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(e, target), head(e, target))


def test_it_learns():
    generator = torch.Generator().manual_seed(0)
    e = torch.randn(64, 16, generator=generator)
    target = torch.arange(64) % 50
    torch.manual_seed(0)
    head = LinearCrossEntropy(16, 50)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = head(e, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
