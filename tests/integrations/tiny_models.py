"""Causal language models of many architectures with random weights, small enough to run in milliseconds."""

import torch
import transformers

VOCAB = 99
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Large weights, so that the logits leave the range where a softcap or a scale would make no difference.
    "initializer_range": 0.3,
}


def build(architecture, config_class=None, **changes):
    """A model of class ``architecture`` in float32, the same one each time."""
    name = config_class or architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + "Config"
    config = getattr(transformers, name)(**{**SIZES, **changes})
    # Dropout would make two runs differ.
    for option in ("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "hidden_dropout"):
        if hasattr(config, option):
            setattr(config, option, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, architecture)(config)
        if model.get_output_embeddings() is not None and model.get_output_embeddings().bias is not None:
            torch.nn.init.normal_(model.get_output_embeddings().bias)
    return model


def batch(generator, rows=3, length=13):
    """Tokens, and labels of which some are ignored."""
    tokens = torch.randint(3, VOCAB, (rows, length), generator=generator)
    labels = tokens.where(torch.rand(rows, length, generator=generator) > 0.2, -100)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def loss_and_gradients(model, **inputs):
    """The loss and the gradient of every parameter, by name."""
    model.zero_grad(set_to_none=True)
    loss = model(**inputs).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.detach(), gradients


def relative(ours, reference):
    """Relative Frobenius error over all parameters together."""
    assert ours.keys() == reference.keys()
    difference = sum((ours[name].double() - reference[name].double()).square().sum() for name in reference)
    return (difference / sum(value.double().square().sum() for value in reference.values())).sqrt().item()
