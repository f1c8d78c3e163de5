"""Tables shipped with the package, compressed: read whole, checked against their checksums."""

from __future__ import annotations

import hashlib
import json
import lzma
from functools import cache
from pathlib import Path
from types import MappingProxyType

from lossbook.data.errors import DataError, shipped_mend

FOLDER = Path(__file__).with_name("wordnet_tables")
RECORD = "tables.json"


@cache
def tables() -> MappingProxyType[str, str]:
    """Return the text of every shipped table by its name, decompressed and checked.

    Raises:
        DataError: If one is missing or damaged; the message ends with the command that mends it.
    """
    mend = shipped_mend(FOLDER)
    try:
        record = json.loads((FOLDER / RECORD).read_text(encoding="utf-8"))
        checksums = {table["name"]: table["sha256"] for table in record["tables"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{FOLDER / RECORD} is missing or damaged", mend) from error
    contents = {}
    for name, expected in checksums.items():
        path = FOLDER / f"{name}.xz"
        try:
            content = lzma.decompress(path.read_bytes())
        except OSError as error:
            raise DataError(f"the table {path} is missing", mend) from error
        except lzma.LZMAError as error:
            raise DataError(f"the table {path} is damaged", mend) from error
        if hashlib.sha256(content).hexdigest() != expected:
            raise DataError(f"the table {path} does not match its checksum", mend)
        contents[name] = content.decode("utf-8")
    return MappingProxyType(contents)
