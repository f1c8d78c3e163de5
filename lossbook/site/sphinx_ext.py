"""Sphinx extension of the book: pages made from data, and chapter numbers as the plan of the book gives them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors.toctree import TocTreeCollector
from sphinx.util.docutils import SphinxDirective

from lossbook.site import pages

_CHAPTER = re.compile(r"^notebooks/(\d\d)_")


class _Generated(SphinxDirective):
    """Inserts generated Markdown into the page that names the directive."""

    make: ClassVar[Callable[[], str]]

    def run(self) -> list[nodes.Node]:
        for path in pages.sources():
            self.env.note_dependency(str(path))
        box = nodes.container(classes=["lossbook-table"])
        self.state.nested_parse(StringList(type(self).make().splitlines(), source=self.env.docname), 0, box)
        return [box]


def _directive(make: Callable[[], str]) -> type[_Generated]:
    return type(f"Lossbook{make.__name__.title()}", (_Generated,), {"make": staticmethod(make)})


_DIRECTIVES = {
    "lossbook-contents": pages.contents,
    "lossbook-totals": pages.totals,
    "lossbook-scoreboard": pages.claims_table,
    "lossbook-run-times": pages.run_times,
    "lossbook-benchmarks": pages.benchmarks,
}
_assign_from_one = TocTreeCollector.assign_section_numbers


def _assign_section_numbers(self: TocTreeCollector, env: BuildEnvironment) -> list[str]:
    """Number sections as Sphinx does, but give each chapter its own number in place of its rank among those written.

    Figures, equations and exercises take their first number from the section's, so they follow.
    """
    before = copy.deepcopy(env.toc_secnumbers)
    _assign_from_one(self, env)
    for docname, numbers in env.toc_secnumbers.items():
        if found := _CHAPTER.match(docname):
            chapter = int(found[1])
            env.toc_secnumbers[docname] = {anchor: _renumber(number, chapter) for anchor, number in numbers.items()}
            for node in (env.titles[docname], *env.tocs[docname].findall(nodes.reference)):
                if node.get("secnumber"):
                    node["secnumber"] = _renumber(node["secnumber"], chapter)
    return [docname for docname, numbers in env.toc_secnumbers.items() if numbers != before.get(docname)]


def _renumber(number: tuple[int, ...] | None, chapter: int) -> tuple[int, ...] | None:
    return number and (chapter, *number[1:])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives and the numbering with Sphinx.

    Args:
        app: The Sphinx application.

    Returns:
        What Sphinx wants to know of an extension.
    """
    for name, make in _DIRECTIVES.items():
        app.add_directive(name, _directive(make))
    TocTreeCollector.assign_section_numbers = _assign_section_numbers
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
