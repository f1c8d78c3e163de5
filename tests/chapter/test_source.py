"""The lines of the package that chapters show."""

import subprocess
import sys

import pytest

from lossbook.chapter.source import source_of

KERNEL = "lossbook.kernels.cross_entropy.triton.statistics.statistics_kernel"


def test_parts_are_shown_in_order_with_a_mark_between_them():
    text = source_of("lossbook.chapter.source.source_of", ("definition =", "lines ="), ("del lines", "del lines"))
    assert text.splitlines() == [
        "definition = ast.parse(text).body[0]",
        "lines = text.rstrip().splitlines()",
        "    # ...",
        "    del lines[docstring.lineno - 1 : docstring.end_lineno]",
    ]


def test_adjacent_parts_have_no_mark_between_them():
    text = source_of("lossbook.chapter.source.source_of", ("definition =", "definition ="), ("lines =", "lines ="))
    assert "# ..." not in text and len(text.splitlines()) == 2


@pytest.mark.parametrize(
    "parts", [[("no such line", "lines =")], [("lines =", "lines ="), ("definition =", "lines =")]]
)
def test_missing_part_is_named(parts):
    with pytest.raises(ValueError, match=f"parts must name lines .* got '{parts[-1][0]}'"):
        source_of(source_of, *parts)


def test_decorated_kernel_is_shown_without_importing_its_compiler():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from lossbook.chapter.source import source_of\n"
        f"print(source_of({KERNEL!r}, ('@', 'def '), ('tl.dot(', 'tl.dot(')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *_, last = done.stdout.splitlines()
    assert first == "@triton.heuristics(EVEN)"
    assert last.strip().startswith("z = tl.dot(")


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("lossbook.kernels.cut_cross_entropy", "def cut_cross_entropy("),
        ("lossbook.chapter.core.Chapter.claim", "def claim(self"),
    ],
)
def test_import_from_elsewhere_and_method_are_followed(name, start):
    assert source_of(name).startswith(start)


@pytest.mark.parametrize("name", ["lossbook.chapter.source.missing", "lossbook.missing.source", "missing"])
def test_name_that_leads_nowhere_is_an_import_error(name):
    with pytest.raises(ImportError):
        source_of(name)


def test_name_of_something_without_source_is_a_type_error():
    with pytest.raises(TypeError, match="function must be written in Python"):
        source_of("math.sqrt")
