"""Ensembles: each member must be the model it would be alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lossbook.nn import Ensemble, ensemble_batches

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def mlp(seed, hidden=9):
    """Drawn from the seed; a fork leaves the global random state alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, hidden), nn.ReLU(), nn.Linear(hidden, 3)).double()


def conv(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # No bias: batch normalization would cancel it, and Adam would scale the rounding left of its gradient.
        layers = nn.Conv1d(1, 4, 3, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
        return nn.Sequential(*layers).double()


@pytest.fixture
def task(generator):
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (40,), generator=generator)


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.3, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}


def train_alone(model, optimizer, x, y, seed, epochs, clip):
    for (index,) in ensemble_batches(len(x), 16, seeds=[seed], epochs=epochs):
        optimizer.zero_grad()
        functional.cross_entropy(model(x[index]), y[index]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


@pytest.mark.parametrize("make", [mlp, conv])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_member_is_the_model_trained_alone(task, make, name):
    """Same seed, same batches: parameters and buffers agree to rounding after three epochs with a ragged batch."""
    x, y = task
    x = x[:, None] if make is conv else x
    seeds, clip = [3, 4, 5], 0.5
    ensemble = Ensemble([make(seed) for seed in seeds])
    optimizer = OPTIMIZERS[name](ensemble.parameters())
    for index in ensemble_batches(len(x), 16, seeds=seeds, epochs=3):
        optimizer.zero_grad()
        logits = ensemble(x[index])
        losses = functional.cross_entropy(logits.flatten(0, 1), y[index].flatten(), reduction="none")
        losses.view(index.shape).mean(1).sum().backward()
        ensemble.clip_grad_norm_(clip)
        optimizer.step()
    for place, seed in enumerate(seeds):
        alone = make(seed)
        train_alone(alone, OPTIMIZERS[name](alone.parameters()), x, y, seed, 3, clip)
        member = ensemble.member(place)
        assert member.state_dict().keys() == alone.state_dict().keys()
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(member.state_dict()[key], value, **CLOSE)
        assert (alone.state_dict()["0.weight"] - make(seed).state_dict()["0.weight"]).abs().max() > 0.01


def test_members_compute_what_they_would_alone(task):
    x, _ = task
    members = [mlp(seed) for seed in range(4)]
    ensemble = Ensemble(members)
    assert len(ensemble) == 4
    expected = torch.stack([member(x) for member in members])
    torch.testing.assert_close(ensemble(x, shared=True), expected, **CLOSE)
    torch.testing.assert_close(ensemble(x.expand(4, 40, 5)), expected, **CLOSE)
    own = x.view(4, 10, 5)
    expected = torch.stack([member(rows) for member, rows in zip(members, own, strict=True)])
    torch.testing.assert_close(ensemble(own), expected, **CLOSE)


def test_gradients_do_not_cross_members(task):
    x, _ = task
    ensemble = Ensemble([mlp(seed) for seed in range(3)])
    ensemble(x, shared=True)[1].sum().backward()
    for parameter in ensemble.parameters():
        assert (parameter.grad[[0, 2]] == 0).all()
        assert (parameter.grad[1] != 0).any()


def test_clipping_is_per_member(task):
    x, _ = task
    ensemble = Ensemble([mlp(seed) for seed in range(3)])
    weights = torch.tensor([1e-3, 1.0, 30.0], dtype=torch.float64)
    (weights[:, None, None] * ensemble(x, shared=True)).sum().backward()
    before = [parameter.grad.clone() for parameter in ensemble.parameters()]
    norms = ensemble.clip_grad_norm_(1.0)
    expected = torch.stack([torch.cat([g[b].flatten() for g in before]).norm() for b in range(3)])
    torch.testing.assert_close(norms, expected)
    assert norms[0] < 1 < norms[1]
    for parameter, gradient in zip(ensemble.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.grad[0], gradient[0], rtol=0, atol=0)
    after = [torch.cat([p.grad[b].flatten() for p in ensemble.parameters()]).norm() for b in (1, 2)]
    torch.testing.assert_close(torch.stack(after), torch.ones(2, dtype=torch.float64), rtol=1e-5, atol=0)


def test_no_gradient_has_norm_zero():
    assert Ensemble([mlp(0), mlp(1)]).clip_grad_norm_(1.0).tolist() == [0.0, 0.0]


def test_members_are_copied_both_ways():
    first = mlp(0)
    ensemble = Ensemble([first, mlp(1)])
    alone = ensemble.member(0)
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter.zero_()
        assert (ensemble.member(0)[0].weight == first[0].weight).all()
        for parameter in ensemble.parameters():
            parameter.zero_()
    assert (first[0].weight == mlp(0)[0].weight).all()
    assert isinstance(alone[0].weight, nn.Parameter)


class Tied(nn.Module):
    """Two layers that share a weight, a frozen scale of two names, and a buffer counted up."""

    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(float(seed + 1)), requires_grad=False)
        self.also_scale = self.scale
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.scale * self.second(self.first(x)), x


def test_shared_frozen_and_counted_tensors(generator):
    members = [Tied(seed) for seed in range(3)]
    ensemble = Ensemble(members)
    x = torch.randn(3, 7, 4, generator=generator)
    value, passed = ensemble(x)
    torch.testing.assert_close(value, torch.stack([m(rows)[0] for m, rows in zip(members, x, strict=True)]))
    assert torch.equal(passed, x)
    assert ensemble.stacked.calls.tolist() == [1, 1, 1]
    assert [tuple(p.shape) for p in ensemble.parameters() if p.requires_grad] == [(3, 4, 4)]
    value.sum().backward()
    ensemble.clip_grad_norm_(1.0)
    alone = ensemble.member(2)
    assert alone.first.weight is alone.second.weight
    assert alone.also_scale is alone.scale
    assert not alone.scale.requires_grad


def test_a_member_may_be_a_single_number():
    class Number(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value))

        def forward(self):
            return self.value**2

    ensemble = Ensemble([Number(3.0), Number(0.1)])
    ensemble().sum().backward()
    assert ensemble.clip_grad_norm_(1.0).tolist() == pytest.approx([6.0, 0.2])
    assert ensemble.stacked.value.grad.tolist() == pytest.approx([1.0, 0.2])


def test_state_is_saved_and_modes_are_passed_on(task):
    x, _ = task
    ensemble = Ensemble([mlp(seed) for seed in range(2)])
    restored = Ensemble([mlp(seed) for seed in (8, 9)])
    restored.load_state_dict(ensemble.state_dict())
    assert torch.equal(restored(x, shared=True), ensemble(x, shared=True))
    dropout = Ensemble([nn.Dropout(0.5), nn.Dropout(0.5)])
    ones = torch.ones(200)
    masks = dropout(ones, shared=True)
    assert not torch.equal(masks[0], masks[1])
    assert torch.equal(dropout.eval()(ones, shared=True), ones.expand(2, 200))


def test_batches_visit_every_example_once_in_an_order_of_its_own():
    epochs = list(ensemble_batches(10, 4, seeds=[0, 1, 0], epochs=2))
    assert [tuple(index.shape) for index in epochs] == [(3, 4), (3, 4), (3, 2)] * 2
    first, second = torch.cat(epochs[:3], 1), torch.cat(epochs[3:], 1)
    for order in (first, second):
        assert torch.equal(order.sort(1).values, torch.arange(10).expand(3, 10))
        assert torch.equal(order[0], order[2])
        assert not torch.equal(order[0], order[1])
    assert not torch.equal(first, second)
    (alone,) = ensemble_batches(10, 10, seeds=[1])
    assert torch.equal(alone[0], first[1])


def test_batches_leave_the_global_state_alone():
    before = torch.get_rng_state()
    list(ensemble_batches(10, 4, seeds=[0]))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("members", "error", "message"),
    [
        ([], ValueError, "members must hold at least one module, got none"),
        ([nn.Linear(2, 2), nn.ReLU()], TypeError, "members must be modules of one class, got Linear and, at 1, ReLU"),
        ([torch.zeros(2)], TypeError, "members must be modules of one class"),
        ([mlp(0), mlp(1, hidden=8)], ValueError, "members must have the same .*, got a different 0.bias at 1"),
        ([nn.Linear(2, 2), nn.Linear(2, 2, bias=False)], ValueError, "members must .* different bias at 1"),
        ([nn.Linear(2, 2), nn.Linear(2, 2).double()], ValueError, "members must .* different bias at 1"),
    ],
)
def test_members_that_do_not_fit_are_named(members, error, message):
    with pytest.raises(error, match=message):
        Ensemble(members)


def test_bad_calls_are_named():
    ensemble = Ensemble([mlp(0), mlp(1)])
    with pytest.raises(ValueError, match=r"inputs\[0\] must have shape \(B, ...\) = \(2, ...\), got \(3, 5\)"):
        ensemble(torch.zeros(3, 5))
    for index in (-1, 2):
        with pytest.raises(ValueError, match=rf"index must lie in \[0, B\) = \[0, 2\), got {index}"):
            ensemble.member(index)
    with pytest.raises(TypeError, match="index must be an int, got float"):
        ensemble.member(1.0)
    with pytest.raises(ValueError, match=r"max_norm must be > 0, got 0\.0"):
        ensemble.clip_grad_norm_(0.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_examples": 0}, ValueError, "num_examples must be > 0, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be > 0, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs must be an int, got float"),
        ({"seeds": []}, ValueError, "seeds must hold one seed for each member, got none"),
    ],
)
def test_bad_batches_are_named_at_the_call(arguments, error, message):
    with pytest.raises(error, match=message):
        ensemble_batches(**{"num_examples": 4, "batch_size": 2, "seeds": [0]} | arguments)
