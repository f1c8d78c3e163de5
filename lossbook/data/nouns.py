"""Nouns of WordNet 3.1, read from the shipped tables or from the whole database."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lossbook.data import recipe_wordnet, shipped
from lossbook.data.assets import require

# Animals, artifacts, food, people, plants, substances: concrete nouns with long chains of hypernyms.
CATEGORIES = frozenset({"05", "06", "13", "18", "20", "27"})
MIN_WORDS = 4
SHIPPED_SIZE = 6_000
SHIPPED_SEED = 0
NAMES_KEPT = 3

DEFINITIONS, GRAPH = "definitions.txt", "nouns.tsv"


@dataclass(frozen=True)
class Nouns:
    """Synsets by position, some of them drawn as the examples of a data set.

    Attributes:
        lemmas: The names of each synset, most frequent first.
        hypernyms: Positions of the synsets directly above it, classes above instances included.
        definitions: Its definition; of the shipped synsets only the drawn ones have it.
        drawn: Positions of the examples, in the order of drawing.
    """

    lemmas: list[tuple[str, ...]]
    hypernyms: list[tuple[int, ...]]
    definitions: list[str]
    drawn: list[int]

    def ancestors(self, position: int) -> list[int]:
        """All synsets above one, nearest first, each once."""
        found: dict[int, None] = {}
        level = [position]
        while level:
            level = [above for each in level for above in self.hypernyms[each] if above not in found]
            found |= dict.fromkeys(level)
        return list(found)


def draw(n: int | None, seed: int, cache_folder: Path | str | None = None, *, every_category: bool = False) -> Nouns:
    """Draw ``n`` of the nouns that qualify, all of them for None: 41,331 concrete ones, or 78,361 of every category.

    The nouns are shuffled by ``seed`` and the first ``n`` taken, so a smaller sample is the beginning of a larger one.
    The first 6,000 concrete ones of seed 0 are shipped; anything else is read from the asset ``wordnet``.
    """
    if seed == SHIPPED_SEED and n is not None and n <= SHIPPED_SIZE and not every_category:
        whole = _shipped()
        return Nouns(whole.lemmas, whole.hypernyms, whole.definitions, whole.drawn[:n])
    folder = require(recipe_wordnet.DATABASE, cache_folder)
    text = (folder / recipe_wordnet.NOUNS).read_text(encoding="utf-8")
    return sample(parse(text, every_category=every_category), n, seed)


@cache
def _shipped() -> Nouns:
    tables = shipped.tables()
    rows = [line.split("\t") for line in tables[GRAPH].splitlines()]
    return Nouns(
        lemmas=[tuple(names.split("|")) for names, _ in rows],
        hypernyms=[tuple(map(int, above.split())) for _, above in rows],
        definitions=tables[DEFINITIONS].splitlines(),
        drawn=list(range(SHIPPED_SIZE)),
    )


def parse(text: str, *, every_category: bool = False) -> Nouns:
    """Read WordNet's file ``data.noun``; drawn are all that qualify, in the order of the file."""
    records = [_record(line) for line in text.splitlines() if not line.startswith("  ")]
    position = {record[0]: number for number, record in enumerate(records)}
    return Nouns(
        lemmas=[lemmas for _, _, lemmas, _, _ in records],
        hypernyms=[tuple(position[above] for above in hypernyms) for _, _, _, hypernyms, _ in records],
        definitions=[definition for *_, definition in records],
        drawn=[
            number
            for number, (_, category, _, _, definition) in enumerate(records)
            if (every_category or category in CATEGORIES) and len(definition.split()) >= MIN_WORDS
        ],
    )


def _record(line: str) -> tuple[str, str, tuple[str, ...], list[str], str]:
    """Offset, category, lemmas, offsets of the hypernyms and definition of one line; wndb(5WN) gives the format."""
    data, gloss = line.split(" | ", 1)
    offset, category, _, count, *fields = data.split()
    words = 2 * int(count, 16)
    lemmas = tuple(word.replace("_", " ") for word in fields[:words:2])
    pointers = fields[words + 1 : words + 1 + 4 * int(fields[words])]
    above = list(zip(pointers[::4], pointers[1::4], strict=True))
    # Hypernyms of classes before those of instances, such as a breed's before an individual's.
    hypernyms = [target for kind in ("@", "@i") for symbol, target in above if symbol == kind]
    return offset, category, lemmas, hypernyms, _definition(gloss)


def _definition(gloss: str) -> str:
    """A gloss without its examples, which stand in quotes."""
    parts = re.sub(r'"[^"]*"?', "", gloss).split(";")
    return "; ".join(part.strip() for part in parts if part.strip())


def sample(database: Nouns, n: int | None, seed: int) -> Nouns:
    """Keep ``n`` of the drawn nouns, in an order shuffled by ``seed``."""
    drawn = list(database.drawn)
    random.Random(seed).shuffle(drawn)
    if n is not None and n > len(drawn):
        raise ValueError(f"n must be <= {len(drawn)}, the nouns that qualify, got {n}")
    return Nouns(database.lemmas, database.hypernyms, database.definitions, drawn[:n])
