"""Every written notebook runs with profile ``smoke`` (nbval runs it with ``cpu``), and its printed snippets run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from lossbook.chapter import catalog
from lossbook.chapter.claims import load_claims
from lossbook.chapter.execute import execute

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = [info for info in catalog.notebooks() if info.written]
SMOKE_LIMIT = 30  # CPU seconds: the aim is 15 on an idle core; one shared with other tests takes up to twice that
PAGES = [ROOT / "README.md", ROOT / "book" / "how-to-use.md"]


@pytest.mark.notebook
@pytest.mark.parametrize("info", WRITTEN, ids=lambda info: info.slug)
def test_smoke_profile_passes_in_seconds(info, tmp_path):
    result = execute(info, profile="smoke", out=tmp_path)
    assert result.failed is None
    if isinstance(info, catalog.ChapterInfo):
        assert [claim["id"] for claim in result.card["claims"]] == list(load_claims(info.slug))
    else:
        assert result.card is None
    assert result.cpu_seconds <= SMOKE_LIMIT


def python_blocks(text):
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in blocks]


def prose(info):
    cells = nbformat.read(info.notebook, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


# A notebook may show its snippet as a code cell, which nbval runs; if it prints one as text, that is run here.
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
TEXTS |= {info.slug: prose(info) for info in WRITTEN if python_blocks(prose(info))}


@pytest.mark.parametrize("text", TEXTS)
def test_printed_code_runs_as_written(text, tmp_path):
    blocks = python_blocks(TEXTS[text])
    assert blocks, "the page shows how to use the package in one's own code"
    for block in blocks:
        script = tmp_path / "snippet.py"
        script.write_text(block, encoding="utf-8")
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(script)]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stderr[-2000:]}"
