"""The training loop, seeds and threads."""

import math

import numpy as np
import pytest
import torch

from lossbook.chapter import limit_threads, seed_everything, train


def test_records_every_so_many_steps_and_the_last():
    history = train(lambda i: {"loss": i, "lr": 0.1}, 8, record_every=3)
    assert history.steps == [0, 3, 6, 7]
    assert history["loss"] == [0, 3, 6, 7]
    assert history.last("lr") == 0.1
    assert history.stopped == "finished"


def test_interruption_keeps_what_was_recorded(capsys):
    def step(i):
        if i == 3:
            raise KeyboardInterrupt
        return float(i)

    history = train(step, 10, label="toy")
    assert history["loss"] == [0, 1, 2]
    assert history.stopped == "interrupted"
    assert "toy: interrupted after 3 recorded steps" in capsys.readouterr().out


def test_divergence_stops():
    history = train(lambda i: math.inf if i == 2 else 1.0, 10, record_every=5)
    assert history.steps == [0, 2]
    assert history.stopped == "diverged"


def test_zero_steps_and_bad_arguments():
    assert train(lambda i: 0.0, 0).steps == []
    with pytest.raises(ValueError, match="steps must be >= 0, got -1"):
        train(lambda i: 0.0, -1)
    with pytest.raises(ValueError, match="record_every must be >= 1, got 0"):
        train(lambda i: 0.0, 1, record_every=0)


def test_seed_everything():
    draws = []
    for seed in (1, 1, 2):
        seed_everything(seed)
        draws.append((torch.rand(1).item(), np.random.rand()))  # noqa: NPY002
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("text", ["0", "two", "-1"])
def test_bad_thread_counts(monkeypatch, text):
    monkeypatch.setenv("LOSSBOOK_THREADS", text)
    with pytest.raises(ValueError, match="LOSSBOOK_THREADS must be a whole number >= 1"):
        limit_threads()


def test_thread_count_from_the_environment(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("LOSSBOOK_THREADS", "1")
        assert limit_threads() == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
