"""A calibration measures what attention sees, survives its file, and knows its model."""

import dataclasses
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB, build
from torch import nn

from lossbook.integrations.transformers import (
    Calibration,
    DoubleSparsityConfig,
    attach_calibration,
    calibrate,
    detach_calibration,
    overlap,
)
from lossbook.kernels import channel_importance, heavy_channels

transformers = pytest.importorskip("transformers")

FOUR = DoubleSparsityConfig(r=4)


@pytest.fixture
def passages(generator):
    return torch.randint(3, VOCAB, (5, 16), generator=generator)


@pytest.fixture
def model():
    return build("LlamaForCausalLM").eval()


def rotated_queries_and_keys(model, tokens):
    """Queries and keys of every layer after the rotary embedding, from the projections themselves."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    inputs, pairs = [], []
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: inputs.append(
                (module, kwargs["hidden_states"], kwargs["position_embeddings"])
            ),
            with_kwargs=True,
        )
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(tokens)
        for module, hidden, (cos, sin) in inputs:
            q, k = (
                projection(hidden).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
                for projection in (module.q_proj, module.k_proj)
            )
            pairs.append(apply_rotary_pos_emb(q, k, cos, sin))
    for hook in hooks:
        hook.remove()
    return pairs


@pytest.mark.parametrize("method", ["q2vark", "qk", "q", "k"])
def test_importances_are_those_of_rotated_queries_and_keys(model, passages, method):
    """The mean over all passages, each on its own."""
    ours = calibrate(model, passages, method=method)
    pairs = [rotated_queries_and_keys(model, passage[None]) for passage in passages]
    expected = torch.stack(
        [
            torch.stack([channel_importance(*pair[layer], method) for pair in pairs]).mean(0)
            for layer in range(len(model.model.layers))
        ]
    )
    torch.testing.assert_close(ours.importance, expected, rtol=1e-5, atol=1e-6)
    assert (ours.method, ours.passages, ours.passage_tokens, ours.key_heads) == (method, 5, 16, 2)
    assert ours.layers == ("layers.0.self_attn", "layers.1.self_attn")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_batches_of_any_size_give_the_same_and_leave_the_model_alone(model, passages, implementation):
    model.set_attn_implementation(implementation)
    first = calibrate(model, passages)
    for batch_size in (2, 5, 9):
        again = calibrate(model, passages, batch_size=batch_size)
        torch.testing.assert_close(again.importance, first.importance, rtol=1e-5, atol=1e-6)
    assert model.config._attn_implementation == implementation
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_attached_model_can_be_calibrated_again(model, passages):
    first = calibrate(model, passages)
    attach_calibration(model, first, FOUR).set_attn_implementation("double_sparsity")
    again = calibrate(model, passages)
    assert torch.equal(again.importance, first.importance)
    assert model.config._attn_implementation == "double_sparsity"


def test_backbone_and_wrapped_model_count_as_the_model(model, passages):
    class Wrapper(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def get_base_model(self):
            return self.base

    expected = calibrate(model, passages)
    for other in (model.model, Wrapper(model)):
        ours = calibrate(other, passages)
        assert torch.equal(ours.importance, expected.importance) and ours.layers == expected.layers
        assert attach_calibration(other, expected, FOUR) is other and detach_calibration(other) is other
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_bfloat16(model, passages):
    exact = calibrate(model, passages)
    rounded = calibrate(model.bfloat16(), passages)
    assert rounded.importance.dtype == torch.float32
    torch.testing.assert_close(rounded.importance, exact.importance, rtol=0.2, atol=0.05)


def test_channels_of_query_heads_and_of_groups(model, passages):
    ours = calibrate(model, passages)
    for layer, importance in enumerate(ours.importance):
        assert torch.equal(ours.channels(3)[layer], heavy_channels(importance, 3))
        shared = importance[0::2] + importance[1::2]
        assert torch.equal(ours.channels(3, share_kv=True)[layer], heavy_channels(shared, 3))
    assert ours.channels(8).sort().values.eq(torch.arange(8)).all()
    for r in (0, 9):
        with pytest.raises(ValueError, match="r"):
            ours.channels(r)


def test_overlap_of_two_calibrations(model, passages):
    ours = calibrate(model, passages)
    flipped = dataclasses.replace(ours, importance=-ours.importance)
    assert overlap(ours, ours, 3) == 1 and overlap(ours, flipped, 4) == 0 and overlap(ours, flipped, 8) == 1
    assert overlap(ours, flipped, 6) == pytest.approx(4 / 6)
    sizes = dataclasses.replace(ours, importance=ours.importance[:, :2])
    with pytest.raises(ValueError, match=r"b must have shape a's \(layers, Hq, D\) = \(2, 4, 8\), got \(2, 2, 8\)"):
        overlap(ours, sizes, 3)


def test_saved_and_loaded_it_is_the_same(model, passages, tmp_path):
    ours = calibrate(model, passages, method="qk", name="tiny")
    ours.save(tmp_path / "tiny.safetensors")
    loaded = Calibration.load(tmp_path / "tiny.safetensors")
    assert torch.equal(loaded.importance, ours.importance)
    for field in dataclasses.fields(Calibration):
        if field.name != "importance":
            assert getattr(loaded, field.name) == getattr(ours, field.name), field.name
    attach_calibration(model, loaded, DoubleSparsityConfig(r=8))


def test_the_name_kept_is_no_path(model, passages, tmp_path):
    folder = tmp_path / "somebody" / "tiny-llama"
    model.save_pretrained(folder)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert calibrate(loaded, passages).model == "tiny-llama"
    assert calibrate(model, passages).model == "LlamaForCausalLM"


def test_other_files_are_refused(model, passages, tmp_path):
    with pytest.raises(FileNotFoundError):
        Calibration.load(tmp_path / "missing.safetensors")
    (tmp_path / "text").write_text("no tensors here, but enough of it to look for a header")
    save_file({"importance": torch.ones(1)}, tmp_path / "other.safetensors")
    for name in ("text", "other.safetensors"):
        with pytest.raises(ValueError, match=r"path must be a file written by Calibration\.save, got .*" + name):
            Calibration.load(tmp_path / name)
    ours = calibrate(model, passages)
    ours.save(tmp_path / "ours.safetensors")
    metadata = {"format": "lossbook.double_sparsity", "version": "2", "facts": "{}"}
    save_file(load_file(tmp_path / "ours.safetensors"), tmp_path / "later.safetensors", metadata)
    with pytest.raises(ValueError, match=r"path must be of version 1 of .*, got version 2"):
        Calibration.load(tmp_path / "later.safetensors")


OTHERS = {
    "layers": ({"num_hidden_layers": 3}, "num_hidden_layers = 2, got num_hidden_layers = 3"),
    "key heads": ({"num_key_value_heads": 4}, "num_key_value_heads = 2, got num_key_value_heads = 4"),
    "positions": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "rope_parameters = .*, got rope_parameters = .*500000",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_calibration_of_another_model_is_refused(model, passages, name):
    changes, message = OTHERS[name]
    other = build("LlamaForCausalLM", **changes).eval()
    with pytest.raises(ValueError, match=f"it is of LlamaForCausalLM with {message}"):
        attach_calibration(other, calibrate(model, passages))
    assert not any(module._forward_pre_hooks for module in other.modules())


def test_a_calibration_of_another_architecture_is_refused(model, passages):
    with pytest.raises(ValueError, match=r"model_type = llama.*, got model_type = qwen2"):
        attach_calibration(build("Qwen2ForCausalLM"), calibrate(model, passages))


def test_too_many_channels_are_refused(model, passages):
    with pytest.raises(ValueError, match=re.escape("[1, D] = [1, 8], got 16")):
        attach_calibration(model, calibrate(model, passages))


UNSUPPORTED = {
    "softcap": ("Gemma2ForCausalLM", {}, r"Gemma2Attention: its scores have a term of their own \(softcap\)"),
    "sinks": ("GptOssForCausalLM", {"num_local_experts": 2}, r"GptOssAttention: .* \(s_aux\)"),
    "own attention": (
        "BloomForCausalLM",
        {},
        "BloomForCausalLM: its attention does not go through the attention inter",
    ),
    "own cache": ("GPTNeoXForCausalLM", {}, "GPTNeoXForCausalLM: its GPTNeoXAttention takes no past_key_values"),
    "no attention": ("MambaForCausalLM", {}, "MambaForCausalLM: its layers do not pass keywords on"),
    "encoder": (
        "T5ForConditionalGeneration",
        {"config_class": "T5Config", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1},
        "T5ForConditionalGeneration: it is an encoder-decoder model",
    ),
    "latent attention": (
        "DeepseekV3ForCausalLM",
        {
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
            "first_k_dense_replace": 2,
        },
        "DeepseekV3Attention: queries, keys and values must have heads of one size",
    ),
    "vision": ("ViTModel", {"config_class": "ViTConfig"}, "ViTModel: its forward takes no input_ids"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_model_is_named_and_left_alone(passages, name):
    architecture, changes, message = UNSUPPORTED[name]
    model = build(architecture, **changes).eval()
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match=message):
        calibrate(model, passages)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input_ids": [[1, 2]]}, TypeError, "input_ids must be a torch.Tensor"),
        ({"input_ids": torch.ones(2, 3)}, TypeError, "input_ids must have dtype torch.int64"),
        ({"input_ids": torch.ones(3, dtype=torch.int64)}, ValueError, r"\(passages, tokens\)"),
        ({"input_ids": torch.ones(3, 1, dtype=torch.int64)}, ValueError, "at least 2 tokens, got 3 of 1"),
        ({"method": "kq"}, ValueError, "method must be one of .*, got 'kq'"),
        ({"batch_size": 0}, ValueError, "batch_size must be > 0, got 0"),
    ],
)
def test_bad_argument_is_named(model, passages, change, error, message):
    with pytest.raises(error, match=message):
        calibrate(model, **{"input_ids": passages, **change})


def test_training_mode_is_refused(model, passages):
    with pytest.raises(ValueError, match=r"model must be in evaluation mode, got training mode; call model\.eval"):
        calibrate(model.train(), passages)


@pytest.mark.parametrize("call", [calibrate, attach_calibration])
def test_what_is_no_model_of_transformers_is_refused(model, passages, call):
    argument = passages if call is calibrate else calibrate(model, passages)
    with pytest.raises(TypeError, match="model must be a PreTrainedModel of Transformers or a PEFT model around one"):
        call(nn.Sequential(model), argument)
