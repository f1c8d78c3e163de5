"""What sparse decoding costs a model: on a tiny one, against whole forward passes."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from lossbook.bench import decode_quality as quality
from lossbook.cli import app
from lossbook.data import DataError, recorded, recordings
from lossbook.integrations.transformers import calibrate

SIZES = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 6}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=90, num_key_value_heads=2, head_dim=16, **SIZES)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def passages():
    return torch.randint(90, (3, 49), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def calibration(model, passages):
    return calibrate(model, passages)


def method(name, part, r=None, **options):
    return quality.QualityMethod(name, part, r, options=tuple(options.items()))


def test_dense_loss_is_that_of_one_forward_pass(model, passages, calibration):
    dense, lost = quality.lost_by_methods(model, passages, calibration, [], new=8)
    logits = model(passages[:, :-1]).logits[:, -8:]
    expected = cross_entropy(logits.mT, passages[:, -8:], reduction="none").mean(1)
    torch.testing.assert_close(dense, expected, rtol=1e-5, atol=1e-5)
    assert lost == {}
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["oracle", "window", "heavy_hitter", "quest", "double_sparsity", "random_channels"])
def test_a_budget_of_all_tokens_loses_nothing(name, model, passages, calibration, monkeypatch):
    r = {"double_sparsity": 4, "random_channels": 4}.get(name)
    monkeypatch.setitem(quality.QUALITY_METHODS, "all", method(name, 1, r))
    _, lost = quality.lost_by_methods(model, passages, calibration, ["all"], new=8)
    torch.testing.assert_close(lost["all"], torch.zeros(3), rtol=0, atol=1e-5)


def test_all_channels_are_the_oracle_and_methods_do_not_disturb_each_other(model, passages, calibration, monkeypatch):
    monkeypatch.setitem(quality.QUALITY_METHODS, "all channels", method("double_sparsity", 8, 16))
    names = ["oracle, 1/8", "heavy hitters, 1/8", "all channels", "heavy hitters, 1/8"]
    _, lost = quality.lost_by_methods(model, passages, calibration, names, new=8)
    torch.testing.assert_close(lost["all channels"], lost["oracle, 1/8"], rtol=0, atol=1e-5)
    _, alone = quality.lost_by_methods(model, passages, calibration, ["heavy hitters, 1/8"], new=8)
    torch.testing.assert_close(lost["heavy hitters, 1/8"], alone["heavy hitters, 1/8"])


def test_two_layers_stay_dense(model, passages, calibration, monkeypatch):
    calls = []

    class Spy(quality.SparseDecodeAttention):
        def forward(self, *args):
            calls.append(self)
            return super().forward(*args)

    monkeypatch.setattr(quality, "SparseDecodeAttention", Spy)
    quality.lost_by_methods(model, passages, calibration, ["window, 1/8"], new=5)
    assert len(calls) == 5 * 2 and len(set(calls)) == 2


@pytest.mark.model
def test_command_repeats_what_is_recorded(tmp_path):
    """One passage and one method of the recorded table; the first of a few passages is the first of all."""
    out = tmp_path / "q.json"
    arguments = ["bench", "decode-quality", "--methods", "window, 1/8", "--passages", "1", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    ours, stored = json.loads(out.read_text()), recorded("decode_quality")
    assert ours["settings"] == stored["settings"]
    assert ours["dense"][0] == pytest.approx(stored["dense"][0], abs=1e-3)
    assert ours["lost"]["window, 1/8"][0] == pytest.approx(stored["lost"]["window, 1/8"][0], abs=5e-3)


def test_recorded_table_is_complete():
    stored = recorded("decode_quality")
    assert list(stored["lost"]) == list(quality.QUALITY_METHODS)
    assert {len(stored["passages"]), len(stored["dense"]), *map(len, stored["lost"].values())} == {12}
    assert "+-" in "".join(column.header for column in quality.quality_table(stored).columns)


def test_bad_arguments(model):
    with pytest.raises(ValueError, match=r"methods must be names out of \[.*\], got \['guess'\]"):
        quality.decode_quality(None, ["guess"])
    with pytest.raises(ValueError, match="name must be one of 'decode_quality', got 'x'"):
        recorded("x")


def test_a_damaged_record_names_its_mend(tmp_path, monkeypatch):
    folder = tmp_path / "a" / "b" / "recordings"
    folder.mkdir(parents=True)
    (folder / "decode_quality.json").write_text("{")
    monkeypatch.setattr(recordings, "FOLDER", folder)
    with pytest.raises(DataError, match="is missing or damaged; run: pip install --force-reinstall"):
        recorded("decode_quality")
