"""Double Sparsity on a real model and real text, and what its page in the book says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from lossbook import data
from lossbook.integrations.transformers import (
    DoubleSparsityConfig,
    attach_calibration,
    calibrate,
    detach_calibration,
    overlap,
)
from lossbook.kernels import decode_bytes
from lossbook.kernels.sparse_attention.offload import OffloadedCache

BOOK = Path(__file__).resolve().parents[2] / "book"
PAGE = (BOOK / "sparse_attention.md").read_text(encoding="utf-8")
EXAMPLE = BOOK / "examples" / "sparse_generation.py"
PROMPT, CONTINUED = 256, 24


@pytest.fixture(scope="module")
def lm():
    loaded = data.smollm2()
    yield loaded
    detach_calibration(loaded.model)


@pytest.fixture(scope="module")
def text(lm):
    return data.token_blocks(data.text("python_docs"), lm.tokenizer, context=PROMPT + CONTINUED, count=1)


@pytest.fixture(scope="module")
def calibration(lm):
    passages = data.token_blocks(data.text("python_source"), lm.tokenizer, context=128, count=2)
    return calibrate(lm.model, passages, batch_size=2)


@pytest.fixture(scope="module")
def prompted(lm, text):
    """The cache of the prompt, by dense attention."""
    lm.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        return lm.model(text[:, :PROMPT], use_cache=True).past_key_values


def continuation_loss(model, text, cache, implementation):
    """Nats per token of the text behind the prompt, read one token at a time; the cache is as before afterwards."""
    model.set_attn_implementation(implementation)
    losses = []
    with torch.no_grad():
        for position in range(PROMPT, PROMPT + CONTINUED - 1):
            logits = model(text[:, position : position + 1], past_key_values=cache).logits[:, -1]
            losses.append(cross_entropy(logits, text[:, position + 1]))
    cache.crop(-len(losses))
    model.set_attn_implementation("sdpa")
    return torch.stack(losses).mean().item()


@pytest.mark.model
def test_a_small_budget_stays_close_on_real_text(lm, text, calibration, prompted):
    """A quarter of the tokens by 16 of 64 channels costs at most 0.1 nats, and a third of a window.

    The window is as many tokens, the first four and the last ones; all of them are forced, so labels have no say.
    """
    dense = continuation_loss(lm.model, text, prompted, "sdpa")
    costs = []
    for sink, recent in ((4, 16), (4, PROMPT // 4 - 4)):
        config = DoubleSparsityConfig(budget=PROMPT // 4, r=16, sink=sink, recent=recent, dense_below=0)
        attach_calibration(lm.model, calibration, config)
        costs.append(continuation_loss(lm.model, text, prompted, "double_sparsity") - dense)
    sparse, window = costs
    print(f"{sparse:.3f} nats by labels, {window:.3f} by a window")
    assert 0 != sparse <= 0.1 and sparse <= window / 3


@pytest.mark.model
def test_all_tokens_give_the_dense_text(lm, text, calibration, monkeypatch):
    """Token for token, through the sparse kernels in all layers."""
    attention = pytest.importorskip("lossbook.integrations.transformers.attention")
    monkeypatch.setattr(attention.DecodeStep, "_covers", lambda self, tokens: False)
    prompt, options = text[:, :64], {"max_new_tokens": 12, "do_sample": False}
    lm.model.set_attn_implementation("sdpa")
    expected = lm.model.generate(prompt, **options)
    attach_calibration(lm.model, calibration, DoubleSparsityConfig(budget=80, dense_layers=(), dense_below=0))
    lm.model.set_attn_implementation("double_sparsity")
    assert torch.equal(lm.model.generate(prompt, **options), expected)
    lm.model.set_attn_implementation("sdpa")
    assert torch.equal(lm.model.generate(prompt, **options), expected)


@pytest.mark.model
def test_channels_belong_to_the_model_not_to_the_text(lm, text, calibration):
    """Source code and documentation agree far beyond chance, r / 64."""
    other = calibrate(lm.model, text[:, :128])
    assert all(overlap(calibration, other, r) >= 0.6 for r in (4, 8, 16))
    assert calibration.importance.shape == (30, 9, 64)


def next_layers_query(model, layer, hidden, position):
    """What layer ``layer + 1`` would ask for, were the input of ``layer`` its own."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    following = model.model.layers[layer + 1]
    q = following.self_attn.q_proj(following.input_layernorm(hidden)).unflatten(-1, (9, 64)).transpose(1, 2)
    angles = model.model.rotary_emb(hidden, position_ids=torch.tensor([[position]]))
    return apply_rotary_pos_emb(q, q, *angles)[0][:, :, 0]


@pytest.mark.model
def test_tokens_are_found_ahead_from_the_input_of_the_layer_before(lm, text, calibration, prompted):
    """The guess finds at least 0.7 of an eighth of the tokens, and less than 0.4 from that layer's query."""
    attention = pytest.importorskip("lossbook.integrations.transformers.attention")
    layers, inputs = lm.model.model.layers, {}
    by_input, by_query = (
        OffloadedCache(calibration.channels(16), 1, 3, 64, capacity=PROMPT + 4, budget=PROMPT // 8) for _ in range(2)
    )
    for index, layer in enumerate(prompted.layers):
        for cache in (by_input, by_query):
            cache.fill(index, layer.keys.contiguous(), layer.values.contiguous())

    def decode(module, query, key, value, mask, **options):
        index, q, guess = module.layer_idx, query[:, :, 0], None
        for cache in (by_query, by_input):
            cache.append(index, key[:, :, -1:], value[:, :, -1:])
            if index + 1 < len(layers):
                guess = q if cache is by_query else next_layers_query(lm.model, index, inputs[index], key.shape[2] - 1)
            out = cache.attend(index, q, q_next=guess, scale=options["scaling"])
        return out[:, None], None

    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: inputs.update({layer.self_attn.layer_idx: args[0]}))
        for layer in layers
    ]
    with torch.no_grad(), attention.switched(lm.model):
        for position in range(PROMPT, PROMPT + 4):
            lm.model(text[:, position : position + 1], past_key_values=prompted, double_sparsity=decode)
    prompted.crop(-4)
    for hook in hooks:
        hook.remove()
    print(f"{by_input.counts.hit_rate:.3f} by the input, {by_query.counts.hit_rate:.3f} by the query")
    assert by_input.counts.hit_rate >= 0.7 and by_query.counts.hit_rate < 0.4


@pytest.mark.model
def test_the_program_of_the_page_runs(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    texts = re.findall(r"^(\w+): (.+)$", done.stdout, re.MULTILINE)
    assert [name for name, _ in texts] == ["sdpa", "double_sparsity"] and all(len(text) > 20 for _, text in texts)
    assert (tmp_path / "smollm2.safetensors").is_file()


def test_the_page_shows_the_program_that_is_run_here():
    assert re.findall(r"^```\{literalinclude\} examples/(\S+)$", PAGE, re.MULTILINE) == [EXAMPLE.name]
    assert "```python" not in PAGE, "code on this page comes from the tested program"


def test_the_bytes_on_the_page_are_counted():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| \w+-.*", PAGE, re.MULTILINE)
    ]
    rows = [row for row in rows if len(row) == 13]
    assert len(rows) == 7
    for row in rows:
        requests, tokens, heads, key_heads, size, r, bits = map(int, row[1:8])
        options = {"budget": tokens // 16, "r": r, "bits": bits, "share_kv": row[8] == "yes"}
        counted = decode_bytes(requests, heads, key_heads, tokens, size, **options)
        dense, total = counted["dense"], counted["total"]
        shares = [
            f"{dense / 2**20:.1f}",
            f"{total / 2**20:.1f}",
            f"{dense / total:.1f}",
            f"{100 * counted['labels'] / dense:.1f} %",
        ]
        assert row[9:] == shares


def test_the_defaults_on_the_page_are_those_of_the_options():
    config = DoubleSparsityConfig()
    assert config.dense_layers == (0, 1) and "the first two layers" in PAGE
    assert f"texts of up to {config.dense_below:,} tokens" in PAGE
