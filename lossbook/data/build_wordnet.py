"""Make the shipped WordNet tables anew: ``lossbook fetch wordnet && python -m lossbook.data.build_wordnet [FOLDER]``.

They hold the nouns that :mod:`lossbook.data.wordnet` draws by default: their definitions in one file; their names and
the graph of hypernyms above them in the other, where a line's number, from 0, is a synset's position.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import lzma
import sys
from pathlib import Path

from lossbook.data import nouns, recipe_wordnet, shipped
from lossbook.data.assets import require


def content(database: nouns.Nouns) -> dict[str, str]:
    """Return the text of each table, from the whole database."""
    drawn = nouns.sample(database, nouns.SHIPPED_SIZE, nouns.SHIPPED_SEED)
    listed = dict.fromkeys(drawn.drawn)
    listed |= dict.fromkeys(above for each in drawn.drawn for above in drawn.ancestors(each))
    line = {position: number for number, position in enumerate(listed)}
    graph = [
        f"{'|'.join(drawn.lemmas[each][: nouns.NAMES_KEPT])}\t{' '.join(str(line[up]) for up in drawn.hypernyms[each])}"
        for each in listed
    ]
    definitions = [drawn.definitions[each] for each in drawn.drawn]
    return {nouns.DEFINITIONS: "\n".join(definitions) + "\n", nouns.GRAPH: "\n".join(graph) + "\n"}


def build(folder: Path, database: Path | None = None) -> list[dict[str, str | int]]:
    """Write both tables, their license and ``tables.json`` into a folder.

    Args:
        folder: Created where it does not exist.
        database: The folder of the asset ``wordnet``; by default the one in the cache.

    Returns:
        What was recorded about each table.
    """
    source = database or require(recipe_wordnet.DATABASE)
    text = (source / recipe_wordnet.NOUNS).read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for name, table in content(nouns.parse(text)).items():
        raw = table.encode()
        packed = lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)
        (folder / f"{name}.xz").write_bytes(packed)
        checksum = hashlib.sha256(raw).hexdigest()
        records.append({"name": name, "bytes": len(raw), "compressed": len(packed), "sha256": checksum})
    license = recipe_wordnet.license_text(text)
    (folder / recipe_wordnet.LICENSE_FILE).write_text(license, encoding="utf-8", newline="\n")
    record = {
        "source": recipe_wordnet.SOURCE,
        "license": recipe_wordnet.LICENSE,
        "license_file": recipe_wordnet.LICENSE_FILE,
        "command": "python -m lossbook.data.build_wordnet",
        "date": datetime.date.today().isoformat(),
        "tables": records,
    }
    (folder / shipped.RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8", newline="\n")
    return records


if __name__ == "__main__":
    for table in build(Path(sys.argv[1]) if len(sys.argv) > 1 else shipped.FOLDER):
        print(f"{table['name']}.xz: {table['compressed']:,} bytes, {table['bytes']:,} unpacked")
