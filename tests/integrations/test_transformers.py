"""A patched model is the same model, without its logits: same loss, same gradients, same everything else."""

import copy
import gc
import inspect
import json
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
from tiny_models import SIZES, VOCAB, batch, build, loss_and_gradients, relative
from torch import nn

from lossbook import data
from lossbook.integrations.transformers import patch, unpatch

transformers = pytest.importorskip("transformers")

# A few roundings of float32 for the loss, and as many for the gradient of all parameters together.
LOSS, GRADIENT = 1e-6, 5e-6

MODELS = {
    "llama": ("LlamaForCausalLM", {}),
    "llama tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", {}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {}),
    "gemma": ("GemmaForCausalLM", {}),
    "gemma2 softcap": ("Gemma2ForCausalLM", {"final_logit_softcapping": 3.0}),
    "gemma2 no softcap": ("Gemma2ForCausalLM", {"final_logit_softcapping": None}),
    "gemma3 softcap": ("Gemma3ForCausalLM", {"config_class": "Gemma3TextConfig", "final_logit_softcapping": 3.0}),
    "granite divides": ("GraniteForCausalLM", {"logits_scaling": 8.0}),
    "hyperclovax multiplies": ("HyperCLOVAXForCausalLM", {"logits_scaling": 0.4}),
    "cohere multiplies": ("CohereForCausalLM", {"logit_scale": 0.3}),
    "phi bias": ("PhiForCausalLM", {}),
    "phi3": ("Phi3ForCausalLM", {}),
    "gpt2": ("GPT2LMHeadModel", {}),
    "gpt-neox embed_out": ("GPTNeoXForCausalLM", {}),
    "opt narrow head": ("OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 16}),
    "bloom": ("BloomForCausalLM", {}),
    "mamba": ("MambaForCausalLM", {}),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4}),
    "mixtral auxiliary loss": ("MixtralForCausalLM", {"num_local_experts": 4, "output_router_logits": True}),
    "qwen2 mixture": ("Qwen2MoeForCausalLM", {"num_experts": 4, "output_router_logits": True}),
}

every_model = pytest.mark.parametrize("name", MODELS)


def make(name):
    architecture, changes = MODELS[name]
    return build(architecture, **changes)


@pytest.fixture
def model():
    return build("LlamaForCausalLM")


def compare(model, inputs, **options):
    """Loss and gradients before and after the patch agree to rounding."""
    expected = loss_and_gradients(model, **inputs)
    ours = loss_and_gradients(patch(model, **options), **inputs)
    torch.testing.assert_close(ours[0], expected[0], rtol=LOSS, atol=0)
    assert relative(ours[1], expected[1]) <= GRADIENT
    return ours, expected


@every_model
def test_same_loss_and_gradients(name, generator):
    compare(make(name), batch(generator))


@every_model
def test_same_without_labels_and_in_generation(name, generator):
    model, tokens = make(name).eval(), batch(generator)["input_ids"]

    def run():
        with torch.no_grad():
            text = model.generate(tokens[:1, :5], max_new_tokens=4, do_sample=False, use_cache="mamba" not in name)
            return model(tokens).logits, text

    before = run()
    patched = patch(model) and run()
    model(input_ids=tokens, labels=tokens)
    used, after = run(), unpatch(model) and run()
    for values in (patched, used, after):
        assert all(torch.equal(value, first) for value, first in zip(values, before, strict=True))


@pytest.mark.parametrize("count", [17, 17.0, torch.tensor(17), torch.tensor(17.0)])
def test_num_items_in_batch_divides_the_sum(model, generator, count):
    compare(model, batch(generator) | {"num_items_in_batch": count})


def test_gradient_accumulation_equals_one_batch(model, generator):
    whole = batch(generator, rows=4)
    items = (whole["labels"][:, 1:] != -100).sum()
    expected = loss_and_gradients(model, **whole)
    patch(model)
    total = torch.tensor(0.0)
    for start in (0, 1, 3):
        part = {name: value[start : {0: 1, 1: 3, 3: 4}[start]] for name, value in whole.items()}
        loss = model(**part, num_items_in_batch=items).loss
        loss.backward()
        total += loss.detach()
    torch.testing.assert_close(total, expected[0], rtol=LOSS, atol=0)
    assert relative({name: p.grad for name, p in model.named_parameters()}, expected[1]) <= GRADIENT


def test_labels_shifted_by_the_caller(model, generator):
    inputs = batch(generator)
    shifted = nn.functional.pad(inputs["labels"], (0, 1), value=-100)[:, 1:].contiguous()
    ours, _ = compare(model, inputs | {"shift_labels": shifted})
    torch.testing.assert_close(ours[0], loss_and_gradients(model, **inputs)[0], rtol=LOSS, atol=0)


def test_another_ignore_index(model, generator):
    inputs = batch(generator)
    inputs["labels"] = inputs["labels"].where(inputs["labels"] != -100, 7)
    compare(model, inputs | {"ignore_index": 7})


@pytest.mark.parametrize("keep", [4, torch.tensor([0, 3, 5, 12]), torch.tensor([[0, 3], [1, 2], [5, 9]])])
def test_logits_to_keep(model, generator, keep):
    inputs = batch(generator)
    kept = inputs["labels"].new_empty(3, keep if isinstance(keep, int) else keep.shape[-1]).random_(3, VOCAB)
    compare(model, inputs | {"logits_to_keep": keep, "labels": kept})
    unpatch(model)
    compare(model, inputs | {"logits_to_keep": keep, "shift_labels": kept})


def test_labels_of_the_wrong_length_are_named(model, generator):
    inputs = batch(generator) | {"logits_to_keep": 4}
    with pytest.raises(ValueError, match=r"labels must have one entry .* \(3, 4\), got \(3, 13\)"):
        patch(model)(**inputs)


def test_labels_by_position(model, generator):
    inputs = batch(generator)
    position = list(inspect.signature(model.forward).parameters).index("labels")
    arguments = [inputs["input_ids"], inputs["attention_mask"], *[None] * (position - 2), inputs["labels"]]
    expected = model(*arguments).loss
    ours = patch(model)(*arguments)
    assert ours.logits is None
    torch.testing.assert_close(ours.loss, expected, rtol=LOSS, atol=0)


def test_no_label_counts(model, generator):
    inputs = batch(generator)
    inputs["labels"].fill_(-100)
    assert model(**inputs).loss.isnan() and patch(model)(**inputs).loss.isnan()
    assert patch(model)(**inputs, num_items_in_batch=5).loss == 0


def test_output_has_everything_but_the_logits(model, generator):
    inputs = batch(generator) | {"output_hidden_states": True, "output_attentions": True, "use_cache": True}
    model.set_attn_implementation("eager")
    expected = model(**inputs)
    output = patch(model)(**inputs)
    assert type(output) is type(expected)
    assert output.logits is None and "logits" not in output
    assert list(output) == [name for name in expected if name != "logits"]
    for ours, theirs in ((output.hidden_states, expected.hidden_states), (output.attentions, expected.attentions)):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert output.past_key_values.get_seq_length() == inputs["input_ids"].shape[1]


def test_mixture_reports_its_router(generator):
    model = make("mixtral auxiliary loss")
    inputs = batch(generator)
    expected, output = model(**inputs), patch(model)(**inputs)
    torch.testing.assert_close(output.aux_loss, expected.aux_loss)
    assert len(output.router_logits) == len(expected.router_logits) == 2


def test_tuple_leaves_the_logits_out(model, generator):
    inputs = batch(generator) | {"use_cache": False, "return_dict": False}
    expected = model(**inputs)
    output = patch(model)(**inputs)
    assert isinstance(output, tuple) and len(output) == 1 and len(expected) == 2
    torch.testing.assert_close(output[0], expected[0], rtol=LOSS, atol=0)


def test_embeddings_as_input(model, generator):
    inputs = batch(generator)
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
    compare(model, inputs)


def test_evaluation_mode_without_gradients(model, generator):
    inputs = batch(generator)
    model.eval()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            expected = unpatch(model)(**inputs).loss
            output = patch(model)(**inputs)
        assert output.logits is None and not output.loss.requires_grad
        torch.testing.assert_close(output.loss, expected, rtol=LOSS, atol=0)


def test_gradient_checkpointing(model, generator):
    model.activation_checkpointing_enable()
    compare(model.train(), batch(generator))


def test_a_frozen_head_gets_no_gradient(model, generator):
    model.lm_head.requires_grad_(False)
    ours, _ = compare(model, batch(generator))
    assert "lm_head.weight" not in ours[1] and "model.embed_tokens.weight" in ours[1]


def no_worse_than_unpatched(model, exact, inputs, autocast):
    """Below float32 the two differ by rounding: the patched one must not be further from the truth."""
    truth = loss_and_gradients(exact, **inputs)
    errors = []
    for run in (unpatch(model), patch(model)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss, gradients = loss_and_gradients(run, **inputs)
        assert loss.dtype == torch.float32
        errors.append((abs(loss - truth[0]).item(), relative(gradients, truth[1])))
    (_, plain), (loss_error, ours) = errors
    assert plain > 1e-3, "the comparison must see rounding"
    assert loss_error <= 2**-8 * truth[0] and ours <= 1.1 * plain
    return errors


@pytest.mark.parametrize("name", ["llama", "gemma2 softcap", "granite divides", "phi bias"])
def test_bfloat16_adds_no_error(name, generator):
    model = make(name).bfloat16()
    no_worse_than_unpatched(model, copy.deepcopy(model).float(), batch(generator), autocast=False)


@pytest.mark.parametrize("name", ["llama", "gemma2 softcap", "granite divides", "phi bias"])
def test_autocast_adds_no_error(name, generator):
    model = make(name)
    no_worse_than_unpatched(model, copy.deepcopy(model), batch(generator), autocast=True)


def test_options_reach_the_loss(model, generator):
    inputs = batch(generator)
    logits = model(inputs["input_ids"]).logits[:, :-1].reshape(-1, VOCAB)
    target = inputs["labels"][:, 1:].reshape(-1)
    lse = logits.logsumexp(-1)[target != -100]
    expected = nn.functional.cross_entropy(logits, target, label_smoothing=0.2) + 0.1 * lse.square().mean()
    patch(model, label_smoothing=0.2, z_loss=0.1, chunk_bytes=1, impl="torch", accum_dtype=torch.float64)
    torch.testing.assert_close(model(**inputs).loss, expected, rtol=LOSS, atol=0)


def test_filter_acts_on_gradients_only(model, generator):
    inputs = batch(generator, rows=20)
    exact = loss_and_gradients(patch(model), **inputs)
    filtered = loss_and_gradients(patch(model, filter_eps=0.05), **inputs)
    embedding = loss_and_gradients(patch(model, filter_eps=0.05, filter_c=False), **inputs)
    assert exact[0] == filtered[0] == embedding[0]
    assert 1e-4 < relative(filtered[1], exact[1]) < 0.5
    torch.testing.assert_close(embedding[1]["lm_head.weight"], exact[1]["lm_head.weight"])


def test_patching_again_replaces_the_options(model, generator):
    inputs = batch(generator)
    plain = patch(model)(**inputs).loss
    assert patch(patch(model, z_loss=0.5), label_smoothing=0.2)(**inputs).loss != plain
    assert torch.equal(patch(model)(**inputs).loss, plain)
    assert "forward" not in vars(unpatch(model))


def test_unpatch_restores_exactly(model, generator):
    inputs, attributes, state = batch(generator), dict(vars(model)), copy.deepcopy(model.state_dict())
    config, signature = model.config.to_json_string(), inspect.signature(model.forward)
    before = model(**inputs)
    assert patch(model) is model
    assert inspect.signature(model.forward) == signature
    loss_and_gradients(model, **inputs)
    assert unpatch(model) is model
    assert unpatch(model) is model, "once more does nothing"
    assert vars(model) == attributes and model.config.to_json_string() == config
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    after = model(**inputs)
    assert torch.equal(after.loss, before.loss) and torch.equal(after.logits, before.logits)


def test_patch_draws_no_random_number(model):
    state = torch.get_rng_state()
    patch(model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_patched_and_its_own(model, generator, copied):
    inputs = batch(generator)
    expected = patch(model, z_loss=0.1)(**inputs).loss.detach()
    twin = copied(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    output = twin(**inputs)
    assert output.logits is None and torch.equal(output.loss.detach(), expected)
    unpatch(model)
    assert twin(**inputs).logits is None


def test_checkpoint_is_that_of_an_unpatched_model(model, generator, tmp_path):
    inputs, keys = batch(generator), list(model.state_dict())
    patch(model).save_pretrained(tmp_path)
    assert list(model.state_dict()) == keys
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "forward" not in vars(loaded)
    torch.testing.assert_close(model(**inputs).loss, loaded(**inputs).loss, rtol=LOSS, atol=0)


def test_an_unused_model_is_freed_at_once():
    gc.collect()
    gc.disable()
    try:
        weight = weakref.ref(patch(build("LlamaForCausalLM")).lm_head.weight)
        assert weight() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["llama", "gemma2 softcap", "granite divides"])
def test_compiles_in_one_graph(name, generator):
    model, inputs = make(name), batch(generator)
    expected = loss_and_gradients(model, **inputs)
    torch.compiler.reset()
    compiled = torch.compile(patch(model), fullgraph=True, backend="aot_eager")
    output = compiled(**inputs)
    output.loss.backward()
    assert output.logits is None
    torch.testing.assert_close(output.loss.detach(), expected[0], rtol=LOSS, atol=0)
    assert relative({name: p.grad for name, p in model.named_parameters()}, expected[1]) <= GRADIENT
    torch.compiler.reset()


def test_distributed_data_parallel(model, generator, tmp_path):
    inputs = batch(generator)
    expected = loss_and_gradients(model, **inputs)
    rendezvous = {"init_method": f"file://{tmp_path}/rendezvous", "rank": 0, "world_size": 1}
    torch.distributed.init_process_group("gloo", **rendezvous)
    try:
        output = nn.parallel.DistributedDataParallel(patch(model))(**inputs)
        output.loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    assert output.logits is None
    torch.testing.assert_close(output.loss.detach(), expected[0], rtol=LOSS, atol=0)
    assert relative({name: p.grad for name, p in model.named_parameters()}, expected[1]) <= GRADIENT


def test_resized_vocabulary(model, generator):
    inputs = batch(generator)
    patch(model).resize_token_embeddings(VOCAB + 5, mean_resizing=False)
    ours = loss_and_gradients(model, **inputs)
    expected = loss_and_gradients(unpatch(model), **inputs)
    torch.testing.assert_close(ours[0], expected[0], rtol=LOSS, atol=0)
    assert relative(ours[1], expected[1]) <= GRADIENT


class Adapted(nn.Module):
    """A head the way adapters make it: the linear layer inside, a low-rank update beside it."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.weight, self.bias = base.weight, base.bias


class Quantized(nn.Linear):
    def forward(self, hidden):
        return super().forward(hidden.round())


class Wrapper(nn.Module):
    """What PEFT offers of a model it has wrapped."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def get_base_model(self):
        return self.base

    def forward(self, **inputs):
        return self.base(**inputs)


def test_a_wrapped_model_is_patched_inside(model, generator):
    wrapped = Wrapper(model)
    assert patch(wrapped) is wrapped and wrapped(**batch(generator)).logits is None
    assert unpatch(wrapped) is wrapped and wrapped(**batch(generator)).logits is not None


def test_lora_on_the_backbone(model, generator):
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]))
    compare(wrapped, batch(generator))
    head = peft.get_peft_model(build("LlamaForCausalLM"), peft.LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match=r"LlamaForCausalLM: its head must be an ordinary torch\.nn\.Linear"):
        patch(head)


def refused(change):
    model = build("LlamaForCausalLM")
    change(model)
    return model


UNSUPPORTED = {
    "encoder-decoder": (
        lambda: build("T5ForConditionalGeneration", "T5Config", d_model=32, d_kv=8, d_ff=48, num_layers=1),
        "T5ForConditionalGeneration: it is an encoder-decoder model",
    ),
    "no head": (lambda: build("LlamaModel", "LlamaConfig"), "LlamaModel: its forward takes no labels"),
    "classifier": (
        lambda: build("LlamaForSequenceClassification", "LlamaConfig"),
        "LlamaForSequenceClassification: it has no language-model head",
    ),
    "masked": (lambda: build("ModernBertForMaskedLM", "ModernBertConfig"), "its loss function is ForMaskedLMLoss"),
    "nested head": (
        lambda: build("BertLMHeadModel", "BertConfig", is_decoder=True),
        "its head is not an attribute of the model itself",
    ),
    "logits cut": (lambda: build("CpmAntForCausalLM", "CpmAntConfig", prompt_length=4), "its forward does not lead"),
    "own loss": (
        lambda: refused(lambda model: setattr(model, "loss_function", lambda *a, **k: 0)),
        "its loss function is <lambda>, not the one of causal language models",
    ),
    "adapter on the head": (
        lambda: refused(lambda model: setattr(model, "lm_head", Adapted(model.lm_head))),
        r"its head must be an ordinary torch\.nn\.Linear, got Adapted",
    ),
    "quantized head": (
        lambda: refused(lambda model: setattr(model, "lm_head", Quantized(32, VOCAB))),
        r"its head must be an ordinary torch\.nn\.Linear, got Quantized",
    ),
    "hook on the head": (
        lambda: refused(lambda model: model.lm_head.register_forward_hook(lambda *a: None)),
        "its head has hooks",
    ),
    "replaced forward": (
        lambda: refused(lambda model: setattr(model, "forward", model.forward)),
        "its forward method was replaced on the instance",
    ),
    "vocabulary of the configuration": (
        lambda: refused(lambda model: setattr(model, "lm_head", nn.Linear(32, VOCAB + 1))),
        "its vocab_size is 99, but its head has 100 rows",
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_model_is_named_and_left_alone(case):
    make_model, message = UNSUPPORTED[case]
    model = make_model()
    before = dict(vars(model))
    with pytest.raises(ValueError, match=f"^model must be a supported causal language model, got .*{message}"):
        patch(model)
    assert vars(model) == before


def test_a_head_changed_later_is_noticed(model, generator):
    patch(model).lm_head = Adapted(model.lm_head)
    with pytest.raises(ValueError, match="its head must be an ordinary"):
        model(**batch(generator))
    assert unpatch(model) is model


def test_a_forward_wrapped_later_is_not_torn_out(model):
    inner = patch(model).forward
    model.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    for change in (patch, unpatch):
        with pytest.raises(ValueError, match="LlamaForCausalLM"):
            change(model)
    model.forward = inner
    assert "forward" not in vars(unpatch(model))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shift": 1}, TypeError, "options of patch must be among label_smoothing, .*, got shift"),
        ({"reduction": "sum"}, TypeError, "got reduction"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing"),
        ({"z_loss": -1.0}, ValueError, "z_loss"),
        ({"filter_eps": "slow"}, ValueError, "filter_eps"),
        ({"impl": "cuda"}, ValueError, "impl"),
        ({"chunk_bytes": 0}, ValueError, "chunk_bytes"),
        ({"accum_dtype": torch.float16}, (TypeError, ValueError), "accum_dtype"),
    ],
)
def test_bad_option_is_named_at_once(model, options, error, message):
    with pytest.raises(error, match=message):
        patch(model, **options)
    assert "forward" not in vars(model)


@pytest.mark.parametrize("wrap", [lambda model: nn.Sequential(model), torch.compile, lambda model: model.lm_head])
@pytest.mark.parametrize("change", [patch, unpatch])
def test_what_is_no_model_of_transformers_is_refused(model, wrap, change):
    with pytest.raises(TypeError, match="model must be a PreTrainedModel of Transformers or a PEFT model around one"):
        change(wrap(model))


@pytest.mark.parametrize("changes", [{}, {"bf16": True}])
def test_trainer(generator, tmp_path, changes):
    """Two optimizer steps of two accumulated batches, then an evaluation: as without the patch."""
    accelerate = pytest.importorskip("accelerate")
    rows = batch(generator, rows=16, length=9)
    examples = [{name: value[row] for name, value in rows.items()} for row in range(16)]

    def train(model):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            max_steps=2,
            learning_rate=1e-2,
            seed=1,
            use_cpu=True,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            prediction_loss_only=True,
            disable_tqdm=True,
            **changes,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=examples, eval_dataset=examples[:4])
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, trainer.evaluate()["eval_loss"]

    losses, evaluated = train(build("LlamaForCausalLM"))
    patched = patch(build("LlamaForCausalLM"))
    our_losses, our_evaluated = train(patched)
    tolerance = 2e-2 if changes else 1e-4  # the log has five digits
    assert len(losses) == 2 and losses[1] < losses[0]
    assert our_losses == pytest.approx(losses, rel=tolerance)
    assert our_evaluated == pytest.approx(evaluated, rel=tolerance)
    if changes:
        with pytest.raises(ValueError, match="extract_model_from_parallel"):
            unpatch(patched)
        accelerate.utils.extract_model_from_parallel(patched, keep_fp32_wrapper=False)
        assert patched(**rows).logits is None
    assert "forward" not in vars(unpatch(patched)) and patched(**rows).logits is not None


@pytest.fixture(scope="module")
def smollm2():
    """The model in float32 with gradients, and 96 tokens of real text."""
    lm = data.smollm2()
    return lm.model.requires_grad_(True), data.token_blocks(data.text("python_docs"), lm.tokenizer, context=96, count=1)


@pytest.mark.model
def test_smollm2_in_float32(smollm2):
    model, tokens = smollm2

    def generate():
        return model.generate(tokens[:, :16], max_new_tokens=4, do_sample=False)

    text = generate()
    compare(model, {"input_ids": tokens, "labels": tokens})
    assert torch.equal(generate(), text)
    unpatch(model)
    assert torch.equal(generate(), text)


@pytest.mark.model
def test_smollm2_in_bfloat16(smollm2):
    model, tokens = smollm2
    low = copy.deepcopy(model).bfloat16()
    with torch.no_grad():
        for exact, rounded in zip(model.parameters(), low.parameters(), strict=True):
            exact.copy_(rounded)
    no_worse_than_unpatched(low, model, {"input_ids": tokens, "labels": tokens}, autocast=False)


def test_importing_the_integration_imports_neither_transformers_nor_triton():
    program = (
        "import sys, lossbook.integrations.transformers; "
        "sys.exit(bool({'transformers', 'triton'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_sizes_are_those_of_every_model():
    assert all(make(name).config.get_text_config().vocab_size == SIZES["vocab_size"] for name in MODELS)
