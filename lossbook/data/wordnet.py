"""Text data sets made from WordNet: labels of definitions (chapter 7) and names with their definitions (chapter 8)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lossbook._validation import check_integer, check_number
from lossbook.data import cache as store
from lossbook.data import nouns, recipe_wordnet
from lossbook.data.assets import require
from lossbook.data.errors import DataError

RETRIEVAL_SIZE = 5_000
TRAIN_SIZE = 4_000


class WordNetLabels(NamedTuple):
    """Texts with several labels each.

    Attributes:
        queries: Definitions, N of them.
        labels: The text of each of the L labels.
        target: Which labels a query has, bool, shape (N, L); every row and every column has at least one.
    """

    queries: list[str]
    labels: list[str]
    target: Tensor


def wordnet_xmc(
    n: int | None = 6000,
    min_count: int = 10,
    max_frequency: float = 0.3,
    seed: int = 0,
    *,
    every_category: bool = False,
) -> WordNetLabels:
    """Return definitions of nouns, labeled with every class the noun belongs to.

    A query is the definition of a noun for an animal, artifact, food, person, plant or substance, of at least four
    words, without example sentences. Its labels are all hypernyms above the noun in WordNet, so it has a few that are
    easy to guess ("artifact, artefact") and many that are not. Labels too rare or too frequent are dropped, then
    queries left without any. By default 5,983 queries, 402 labels, 4.86 labels per query, 17 at most.

    WordNet 3.1, Princeton University, under the WordNet license, which lies beside the tables. The nouns are shuffled
    by ``seed`` and the first ``n`` taken. The first 6,000 of seed 0 are shipped in two files of 139 and 95 kB; any
    other sample reads the whole database (15 MB), fetched by ``lossbook fetch wordnet``.

    Args:
        n: Nouns to draw, in [1, 41331], or [1, 78361] of every category; None takes all.
        min_count: Queries a label must have at least, >= 1.
        max_frequency: Share of the queries a label may have at most, in (0, 1].
        seed: Seed of the drawing.
        every_category: Whether to draw from WordNet's nouns of every category, abstract ones too. Default False.

    Returns:
        Queries in the order of drawing, labels by descending frequency (each the first two names of its synset), and
        the table of which belongs to which; also a tuple of the three.

    Raises:
        TypeError: If ``n``, ``min_count`` or ``seed`` is no int, or ``max_frequency`` no number.
        ValueError: If an argument is outside its range.
        DataError: If a shipped table is damaged or the database is needed and was not fetched; the message ends with
            the command that mends it.

    Examples:
        >>> data = wordnet_xmc()
        >>> data.target.shape
        torch.Size([5983, 402])
        >>> data.queries[1]
        'a professional boxer who weighs more than 190 pounds'
        >>> [data.labels[i] for i in data.target[1].nonzero().flatten()]
        ['causal agent, cause', 'person, individual']

    References:
        Miller (1995), "WordNet: A Lexical Database for English".
    """
    _check_draw(n, seed)
    check_integer("min_count", min_count)
    if min_count < 1:
        raise ValueError(f"min_count must be >= 1, got {min_count}")
    check_number("max_frequency", max_frequency)
    if not 0 < max_frequency <= 1:
        raise ValueError(f"max_frequency must lie in (0, 1], got {max_frequency!r}")
    drawn = nouns.draw(n, seed, every_category=every_category)
    above = [drawn.ancestors(position) for position in drawn.drawn]
    # most_common keeps equal counts in the order of first occurrence, which is the same for both sources.
    counts = Counter(label for labels in above for label in labels).most_common()
    kept = [label for label, count in counts if min_count <= count <= max_frequency * len(above)]
    column = {label: number for number, label in enumerate(kept)}
    pairs = [[column[label] for label in labels if label in column] for labels in above]
    target = torch.zeros(len(above), len(kept), dtype=torch.bool)
    for row, columns in zip(target, pairs, strict=True):
        row[columns] = True
    labeled = target.any(1)
    queries = [
        drawn.definitions[position] for position, keep in zip(drawn.drawn, labeled.tolist(), strict=True) if keep
    ]
    return WordNetLabels(queries, [_name(drawn.lemmas[label], 2) for label in kept], target[labeled])


def wordnet_pairs(
    n: int | None = RETRIEVAL_SIZE, seed: int = 0, *, every_category: bool = False
) -> tuple[list[str], list[str]]:
    """Return names of nouns and their definitions.

    The nouns, their source, license and order are those of :func:`wordnet_xmc`. A name joins the first three names of
    a synset, as in ``"opah, moonfish, Lampris regius"``.

    Args:
        n: Nouns to draw, in [1, 41331], or [1, 78361] of every category; None takes all.
        seed: Seed of the drawing.
        every_category: Whether to draw from WordNet's nouns of every category, abstract ones too. Default False.

    Returns:
        Names and definitions, ``n`` of each; the i-th belong together.

    Raises:
        TypeError: If ``n`` or ``seed`` is no int.
        ValueError: If ``n`` is outside its range.
        DataError: As for :func:`wordnet_xmc`.

    Examples:
        >>> names, definitions = wordnet_pairs(3)
        >>> names[1], definitions[1]
        ('heavyweight', 'a professional boxer who weighs more than 190 pounds')
    """
    _check_draw(n, seed)
    drawn = nouns.draw(n, seed, every_category=every_category)
    names = [_name(drawn.lemmas[position], nouns.NAMES_KEPT) for position in drawn.drawn]
    return names, [drawn.definitions[position] for position in drawn.drawn]


def wordnet_retrieval(*, cache: Path | str | None = None) -> dict[str, list[str] | Tensor]:
    """Return names of nouns as queries, their definitions as passages, and MiniLM's embeddings of both.

    The 5,000 pairs are those of :func:`wordnet_pairs`. The embeddings were computed once by
    ``lossbook fetch wordnet-embeddings`` (about two minutes on one core) with :func:`lossbook.data.minilm`, and kept in
    float16; the fetch brings the encoder too, if it is missing. The last 1,000 queries are for testing; passages of
    all 5,000 make the corpus.

    Args:
        cache: Cache folder; default :func:`lossbook.data.cache_dir`.

    Returns:
        A dictionary with ``query_text`` and ``passage_text`` (lists of 5,000), ``query_emb`` and ``passage_emb``
        (unit vectors, float32, shape (5000, 384)), and ``train`` and ``test`` (row indices, int64, 4,000 and 1,000).

    Raises:
        DataError: If the embeddings are missing, damaged or of other texts; the message ends with the command that
            mends it.

    Examples:
        >>> data = wordnet_retrieval()  # doctest: +SKIP
        >>> data["query_emb"].shape  # doctest: +SKIP
        torch.Size([5000, 384])
    """
    from safetensors.torch import load_file

    folder = require(recipe_wordnet.EMBEDDINGS, cache)
    names, definitions = wordnet_pairs(RETRIEVAL_SIZE)
    if store.read_manifest(folder)["texts_sha256"] != texts_sha256(names, definitions):
        raise DataError(
            f"the embeddings in {folder} belong to other texts than the shipped ones",
            f"{recipe_wordnet.EMBEDDINGS_MEND} --force",
        )
    vectors = load_file(folder / recipe_wordnet.VECTORS)
    index = torch.arange(RETRIEVAL_SIZE)
    return {
        "query_text": names,
        "passage_text": definitions,
        # float16 leaves lengths a little off one.
        "query_emb": functional.normalize(vectors["query"].float(), dim=1),
        "passage_emb": functional.normalize(vectors["passage"].float(), dim=1),
        "train": index[:TRAIN_SIZE],
        "test": index[TRAIN_SIZE:],
    }


def texts_sha256(names: list[str], definitions: list[str]) -> str:
    """Return the checksum that ties embeddings to the texts they were computed from."""
    return hashlib.sha256(json.dumps([names, definitions]).encode()).hexdigest()


def _name(lemmas: tuple[str, ...], count: int) -> str:
    return ", ".join(lemmas[:count])


def _check_draw(n: int | None, seed: int) -> None:
    check_integer("seed", seed)
    if n is not None:
        check_integer("n", n)
        if n < 1:
            raise ValueError(f"n must be >= 1, got {n}")
