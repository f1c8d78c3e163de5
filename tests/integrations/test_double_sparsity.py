"""A calibrated model decodes sparsely, and is the model it was wherever a sparse step has nothing to leave out."""

import copy
import dataclasses
import pickle

import pytest
import torch
from tiny_models import VOCAB, build

from lossbook.integrations.transformers import (
    DoubleSparsityConfig,
    attach_calibration,
    calibrate,
    detach_calibration,
    patch,
    register_double_sparsity,
)

transformers = pytest.importorskip("transformers")
attention = pytest.importorskip("lossbook.integrations.transformers.attention")
labels = pytest.importorskip("lossbook.integrations.transformers.label_layer")

# A few roundings of float32 in logits of order 1 to 10.
LOGITS = {"rtol": 1e-4, "atol": 1e-4}
# Every step sparse, in all layers.
SPARSE = DoubleSparsityConfig(budget=6, r=4, sink=1, recent=2, dense_layers=(), dense_below=0)

MODELS = {
    "llama": ("LlamaForCausalLM", {}),
    "llama without groups": ("LlamaForCausalLM", {"num_key_value_heads": 4}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {}),
    "mistral": ("MistralForCausalLM", {"sliding_window": None}),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4}),
    "granite scales": ("GraniteForCausalLM", {"attention_multiplier": 0.3}),
    "gpt2": ("GPT2LMHeadModel", {}),
    "gemma3 mixed": (
        "Gemma3ForCausalLM",
        {"config_class": "Gemma3TextConfig", "layer_types": ["sliding_attention", "full_attention"]},
    ),
}


@pytest.fixture
def tokens(generator):
    return torch.randint(3, VOCAB, (3, 20), generator=generator)


@pytest.fixture
def model():
    return build("LlamaForCausalLM").eval()


def prepared(model, config=SPARSE, **changes):
    """The model calibrated on random tokens, its attention as it was."""
    passages = torch.randint(3, VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))
    return attach_calibration(model, calibrate(model, passages), dataclasses.replace(config, **changes))


def generate(model, tokens, **options):
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, **options}
    output = model.generate(tokens, output_logits=True, return_dict_in_generate=True, **settings)
    return output.sequences, torch.stack(output.logits)


def decode(model, tokens, cache=None, **inputs):
    """Logits of one forward call after the other, of the prompt and then of single tokens; and the cache."""
    cache = transformers.DynamicCache(config=model.config) if cache is None else cache
    logits = []
    with torch.no_grad():
        for part in tokens.split([tokens.shape[1] - 4, 1, 1, 1, 1], 1):
            logits.append(model(part, past_key_values=cache, **inputs).logits[:, -1])
    return torch.stack(logits), cache


@pytest.fixture
def steps(monkeypatch):
    """Counts sparse steps."""
    counted = []
    attend = attention.DecodeStep._attend

    def counting(self, module, query, key, value, mask, **options):
        counted.append((module.layer_idx, key.shape[2]))
        return attend(self, module, query, key, value, mask, **options)

    monkeypatch.setattr(attention.DecodeStep, "_attend", counting)
    return counted


@pytest.fixture
def sparse_always(monkeypatch):
    """Sparse steps even where the budget covers all tokens."""
    monkeypatch.setattr(attention.DecodeStep, "_covers", lambda self, tokens: False)


@pytest.mark.parametrize("share_kv", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_budget_of_all_tokens_is_dense_generation(name, share_kv, tokens, steps, sparse_always):
    """Through the sparse kernels, on a batch with padding in front."""
    architecture, changes = MODELS[name]
    model = build(architecture, **changes).eval()
    mask = torch.ones_like(tokens)
    mask[0, :7] = mask[1, :3] = 0
    expected = generate(model, tokens, attention_mask=mask)
    prepared(model, budget=28, share_kv=share_kv).set_attn_implementation("double_sparsity")
    ours = generate(model, tokens, attention_mask=mask)
    layers = {"gemma3 mixed": 1}.get(name, 2)
    assert len(steps) == 7 * layers
    assert torch.equal(ours[0], expected[0])
    torch.testing.assert_close(ours[1], expected[1], **LOGITS)


@pytest.mark.parametrize("config", [{"budget": 28}, {"dense_below": 28}, {"dense_layers": (0, 1)}, {"budget": 1.0}])
def test_where_nothing_is_left_out_nothing_changes(model, config, tokens, steps):
    expected = generate(model, tokens)
    prepared(model, **config).set_attn_implementation("double_sparsity")
    ours = generate(model, tokens)
    assert not steps and all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_prompt_and_several_tokens_at_once_are_dense(model, tokens, steps):
    def chunks(cache):
        with torch.no_grad():
            return [model(part, past_key_values=cache).logits for part in tokens.split(10, 1)]

    expected = chunks(transformers.DynamicCache(config=model.config))
    prepared(model).set_attn_implementation("double_sparsity")
    ours = chunks(transformers.DynamicCache(config=model.config))
    assert not steps and all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def naive_step(q, k, v, channels, start, config, scaling):
    """A sparse step by the definition, one request and head at a time."""
    out = torch.empty_like(q)
    for row, head in torch.cartesian_prod(torch.arange(q.shape[0]), torch.arange(q.shape[1])).tolist():
        keys, values = (x[row, head // (q.shape[1] // k.shape[1]), start[row] :] for x in (k, v))
        last, chosen = len(keys), channels[head]
        scores = keys[:, chosen] @ q[row, head, chosen]
        scores[: config.sink] = scores[last - config.recent :] = torch.inf
        best = scores.topk(min(config.budget, last)).indices
        out[row, head] = (scaling * keys[best] @ q[row, head]).softmax(0) @ values[best]
    return out


def test_a_step_selects_by_labels_behind_the_padding(model, tokens, monkeypatch):
    """The attention of each sparse step against a loop over requests and heads."""
    prepared(model).set_attn_implementation("double_sparsity")
    mask, starts = torch.ones_like(tokens), (7, 3, 0)
    mask[0, :7] = mask[1, :3] = 0
    attend, errors = attention.DecodeStep._attend, []

    def checked(self, module, query, key, value, attention_mask, **options):
        out = attend(self, module, query, key, value, attention_mask, **options)
        channels, scaling = self.decoder.channels, options["scaling"]
        expected = naive_step(query[:, :, 0], key, value, channels, starts, SPARSE, scaling)
        errors.append((out - expected).abs().max().item())
        return out

    monkeypatch.setattr(attention.DecodeStep, "_attend", checked)
    generate(model, tokens, attention_mask=mask)
    assert len(errors) == 14 and max(errors) < 1e-5


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("share_kv", [False, True])
def test_padding_does_not_matter(model, tokens, bits, share_kv):
    prepared(model, bits=bits, share_kv=share_kv).set_attn_implementation("double_sparsity")
    mask = torch.ones_like(tokens)
    mask[0, :7] = mask[1, :3] = 0
    together = generate(model, tokens, attention_mask=mask)[0]
    for row, start in enumerate((7, 3, 0)):
        alone = generate(model, tokens[row : row + 1, start:])[0]
        assert torch.equal(together[row, start:], alone[0])


def test_beam_search_equals_dense_with_all_tokens(model, tokens, steps, sparse_always):
    options = {"num_beams": 3, "max_new_tokens": 10, "attention_mask": torch.ones_like(tokens)}
    options["attention_mask"][0, :5] = 0
    expected = model.generate(tokens, do_sample=False, **options)
    prepared(model, budget=30).set_attn_implementation("double_sparsity")
    assert torch.equal(model.generate(tokens, do_sample=False, **options), expected) and steps


def test_guessed_tokens_are_read_at_once_and_cropped(model, tokens, steps, sparse_always):
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "prompt_lookup_num_tokens": 3}
    expected = model.generate(tokens[:1], **options)
    prepared(model, budget=40).set_attn_implementation("double_sparsity")
    assert torch.equal(model.generate(tokens[:1], **options), expected) and steps


def test_a_cache_goes_on_with_the_next_prompt(model, tokens, steps, sparse_always):
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    first = model.generate(tokens[:1], **options)
    both = torch.cat((first, tokens[1:2, :6]), 1)
    expected = model.generate(both, **options)
    prepared(model, budget=40).set_attn_implementation("double_sparsity")
    cache = transformers.DynamicCache(config=model.config)
    assert torch.equal(model.generate(tokens[:1], past_key_values=cache, **options), first)
    assert torch.equal(model.generate(both, past_key_values=cache, **options), expected) and steps


def rebuilt(layer, channels, bits):
    """Labels of the layer's keys, made anew."""
    fresh = labels.LabeledLayer.replacing(layer)
    fresh._drop_labels()
    return fresh.labels_of(channels, bits, layer.starts, "auto").dequantize()


CHANGES = {
    "reorder": (lambda c: c.reorder_cache(torch.tensor([2, 0, 0])), (0, 7, 7)),
    "repeat": (lambda c: c.batch_repeat_interleave(2), (7, 7, 3, 3, 0, 0)),
    "select": (lambda c: c.batch_select_indices(torch.tensor([1, 2])), (3, 0)),
    "select by mask": (lambda c: c.batch_select_indices(torch.tensor([True, False, True])), (7, 0)),
    "crop": (lambda c: c.crop(-3), (7, 3, 0)),
    "crop into the padding": (lambda c: c.crop(-14), None),
    "reset": (lambda c: c.reset(), None),
}


@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("change", CHANGES)
def test_labels_follow_the_cache(model, tokens, change, bits):
    """Labels after a change of the cache are those of the changed keys, bit for bit."""
    prepared(model, bits=bits).set_attn_implementation("double_sparsity")
    mask = torch.ones_like(tokens)
    mask[0, :7] = mask[1, :3] = 0
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens[:, :-1], attention_mask=mask[:, :-1], past_key_values=cache)
        model(tokens[:, -1:], attention_mask=mask, past_key_values=cache)
    before = cache.layers[0].labels
    assert isinstance(cache.layers[0], labels.LabeledLayer) and before is not None
    apply, starts = CHANGES[change]
    apply(cache)
    layer = cache.layers[0]
    if starts is None:
        assert layer.labels is None and layer.starts is None and layer.n_labeled == 0
        return
    assert layer.starts == starts
    kept = layer.labels_of(before.channels, bits, starts, "auto")
    assert (kept is not None) and torch.equal(kept.dequantize(), rebuilt(layer, before.channels, bits))


def test_labels_grow_beyond_their_capacity(model, monkeypatch):
    """They are built once for each layer, and from then on extended."""
    built, build_labels = [], labels.build_labels
    monkeypatch.setattr(labels, "build_labels", lambda *a, **k: (built.append(a), build_labels(*a, **k))[1])
    prepared(model, bits=8).set_attn_implementation("double_sparsity")
    tokens = torch.arange(3, 8)[None]
    output = model.generate(
        tokens, max_new_tokens=100, do_sample=False, eos_token_id=None, return_dict_in_generate=True
    )
    layer = output.past_key_values.layers[1]
    assert len(built) == 2 and layer.n_labeled == 104 and layer.labels.lengths.tolist() == [104]
    assert torch.equal(layer.labels.dequantize(), rebuilt(layer, layer.labels.channels, 8))


def test_a_cache_filled_before_the_switch(model, tokens, steps):
    """Also by single tokens of another implementation between sparse steps."""
    prepared(model)
    expected, _ = decode(model, tokens)
    cache = transformers.DynamicCache()
    with torch.no_grad():
        model(tokens[:, :16], past_key_values=cache)
        for position, name in zip(range(16, 20), ("double_sparsity", "sdpa", "eager", "double_sparsity"), strict=True):
            model.set_attn_implementation(name)
            logits = model(tokens[:, position : position + 1], past_key_values=cache).logits
    assert [length for _, length in steps] == [17, 17, 20, 20] and logits.isfinite().all()
    assert not torch.equal(logits[:, -1], expected[-1])
    layer = cache.layers[0]
    assert torch.equal(layer.labels.dequantize(), rebuilt(layer, layer.labels.channels, 16))


def test_a_second_configuration_relabels_the_cache(model, tokens):
    prepared(model).set_attn_implementation("double_sparsity")
    _, cache = decode(model, tokens)
    prepared(model, r=2, bits=8)
    with torch.no_grad():
        model(tokens[:, :1], past_key_values=cache)
    assert cache.layers[0].labels.channels.shape == (4, 2) and cache.layers[0].labels.bits == 8


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_switching_off_restores_the_model_bit_for_bit(model, tokens, name):
    model.set_attn_implementation(name)
    expected = generate(model, tokens)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    prepared(model)
    assert model.config._attn_implementation == name
    model.set_attn_implementation("double_sparsity")
    assert not torch.equal(generate(model, tokens)[1], expected[1])
    model.set_attn_implementation(name)
    assert all(torch.equal(a, b) for a, b in zip(generate(model, tokens), expected, strict=True))
    detach_calibration(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_save_and_reload(model, tokens, tmp_path):
    """The implementation is no part of a checkpoint; it can be asked for when loading."""
    prepared(model).set_attn_implementation("double_sparsity")
    expected = generate(model, tokens)
    model.save_pretrained(tmp_path)
    assert "double_sparsity" not in (tmp_path / "config.json").read_text()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"
    register_double_sparsity()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="double_sparsity").eval()
    with pytest.raises(ValueError, match=r"must be calibrated before .* got LlamaAttention without a calibration"):
        loaded(tokens)
    assert all(torch.equal(a, b) for a, b in zip(generate(prepared(loaded), tokens), expected, strict=True))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_calibrated_and_independent(model, tokens, duplicate):
    prepared(model).set_attn_implementation("double_sparsity")
    expected = generate(model, tokens)
    copied = duplicate(model)
    detach_calibration(model)
    assert all(torch.equal(a, b) for a, b in zip(generate(copied, tokens), expected, strict=True))
    detach_calibration(copied)
    assert not any(module._forward_pre_hooks for module in copied.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [16, 4])
def test_low_precision(model, tokens, dtype, bits, sparse_always):
    """No further from float32 than three times what dense attention is."""
    reference = decode(model, tokens)[0]
    low = copy.deepcopy(model).to(dtype)
    dense = decode(low, tokens)[0]
    prepared(low, budget=20, bits=bits).set_attn_implementation("double_sparsity")
    ours = decode(low, tokens)[0]
    assert ours.dtype == dtype
    assert (ours.float() - reference).norm() <= 3 * (dense.float() - reference).norm()


def test_works_with_a_patched_loss(model, tokens):
    prepared(model).set_attn_implementation("double_sparsity")
    expected = generate(model, tokens)
    patch(model)
    assert all(torch.equal(a, b) for a, b in zip(generate(model, tokens), expected, strict=True))
    assert model(input_ids=tokens, labels=tokens).logits is None


def test_training_with_the_implementation_is_dense(model, tokens):
    expected = model(input_ids=tokens, labels=tokens).loss
    prepared(model).set_attn_implementation("double_sparsity")
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    assert torch.equal(loss, expected) and model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_a_step_with_gradients_is_refused(model, tokens):
    prepared(model).set_attn_implementation("double_sparsity")
    _, cache = decode(model, tokens)
    with pytest.raises(RuntimeError, match=r"no gradient; run the model under torch\.no_grad"):
        model(tokens[:, :1], past_key_values=cache)


def test_dropout_is_refused(model, tokens):
    prepared(model).set_attn_implementation("double_sparsity")
    _, cache = decode(model, tokens)
    model.train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with torch.no_grad(), pytest.raises(ValueError, match=r"dropout must be 0 .*, got 0\.1; call model\.eval"):
        model(tokens[:, :1], past_key_values=cache)


def test_without_a_cache_one_token_is_dense(model, tokens):
    expected = model(tokens[:, :1], use_cache=False).logits
    prepared(model).set_attn_implementation("double_sparsity")
    assert torch.equal(model(tokens[:, :1], use_cache=False).logits, expected)


@pytest.mark.parametrize("sliding_window", [8, 64])
def test_layers_with_a_window_are_dense(tokens, steps, sliding_window):
    model = build("MistralForCausalLM", sliding_window=sliding_window).eval()
    expected = generate(model, tokens)
    prepared(model).set_attn_implementation("double_sparsity")
    ours = generate(model, tokens), decode(model, tokens, transformers.DynamicCache())
    assert not steps and all(torch.equal(a, b) for a, b in zip(ours[0], expected, strict=True))


CACHES = {
    "static": (lambda model: transformers.StaticCache(config=model.config, max_cache_len=32), "got StaticCache"),
    "offloaded": (
        lambda model: transformers.DynamicCache(config=model.config, offloading=True),
        "got DynamicCache with offloading",
    ),
}


@pytest.mark.parametrize("name", CACHES)
def test_other_caches_are_refused(model, tokens, name):
    make, message = CACHES[name]
    prepared(model).set_attn_implementation("double_sparsity")
    with torch.no_grad(), pytest.raises(ValueError, match=f"past_key_values must be a DynamicCache .* {message}"):
        model(tokens, past_key_values=make(model))


def test_other_layers_of_a_cache_are_refused(model, tokens):
    prepared(model).set_attn_implementation("double_sparsity")
    cache = transformers.DynamicCache(config=model.config)
    cache.layers[0] = transformers.cache_utils.DynamicIndexedLayer()
    with torch.no_grad(), pytest.raises(ValueError, match="got a DynamicIndexedLayer in it"):
        model(tokens, past_key_values=cache)


HIDDEN = {
    "in the middle": lambda mask: mask[:, 5:7].fill_(0),
    "at the end": lambda mask: mask[1, -3:-1].fill_(0),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_masks_other_than_left_padding_are_refused(model, tokens, name):
    prepared(model).set_attn_implementation("double_sparsity")
    mask = torch.ones_like(tokens)
    HIDDEN[name](mask)
    with pytest.raises(ValueError, match=r"attention_mask must hide tokens in front of a row only \(left padding\)"):
        generate(model, tokens, attention_mask=mask)


def test_masks_with_numbers_are_refused(model, tokens):
    prepared(model).set_attn_implementation("double_sparsity")
    _, cache = decode(model, tokens)
    with torch.no_grad(), pytest.raises(ValueError, match=r"\(B, 1, 1, S\) = \(3, 1, 1, 21\), got torch.float32"):
        model(tokens[:, :1], past_key_values=cache, attention_mask=torch.zeros(3, 1, 1, 21))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": 0}, ValueError, "budget must be > 0, got 0"),
        ({"budget": 1.5}, ValueError, r"budget must be an int, or a part in \(0, 1\], got 1.5"),
        ({"budget": "all"}, TypeError, "budget must be a number"),
        ({"budget": 8, "recent": 8, "sink": 1}, ValueError, r"sink \+ recent must be <= budget = 8, got 1 \+ 8 = 9"),
        ({"r": 0}, ValueError, "r must be > 0, got 0"),
        ({"bits": 2}, ValueError, "bits must be one of 16, 8, 4, got 2"),
        ({"share_kv": "yes"}, ValueError, "share_kv must be one of False, True, got 'yes'"),
        ({"sink": -1}, ValueError, "sink must be >= 0, got -1"),
        ({"group_reduce": "min"}, ValueError, "group_reduce must be one of"),
        ({"dense_layers": (-1,)}, ValueError, "dense_layers must be >= 0, got -1"),
        ({"dense_below": 1.0}, TypeError, "dense_below must be an int"),
        ({"impl": "cuda"}, ValueError, "impl must be one of"),
    ],
)
def test_bad_option_is_named(options, error, message):
    with pytest.raises(error, match=message):
        DoubleSparsityConfig(**options)


def test_budget_of_a_part_of_the_tokens():
    config = DoubleSparsityConfig(budget=0.25, sink=2, recent=3)
    assert [config.budget_of(tokens) for tokens in (1, 20, 21, 400)] == [5, 5, 6, 100]
    assert DoubleSparsityConfig(budget=64).budget_of(5) == 64
