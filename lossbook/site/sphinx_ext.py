"""Sphinx extension of the book: pages made from data, chapter numbers as planned, and scripts for the widgets."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from ipywidgets.embed import DEFAULT_EMBED_REQUIREJS_URL
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective
from sphinx_external_toc.collectors import TocTreeCollectorWithStyles as Collector

from lossbook.bench import floors_table
from lossbook.chapter import catalog
from lossbook.site import pages

_CHAPTER = re.compile(r"^notebooks/(\d\d)_")
_UNNUMBERED = re.compile(r"^book/parts/|^notebooks/(?!\d\d_)")


class _Generated(SphinxDirective):
    """Inserts generated Markdown into the page that names the directive."""

    make: ClassVar[Callable[..., str]]

    def run(self) -> list[nodes.Node]:
        for path in [*pages.sources(), *sorted((pages.ROOT / "lossbook" / "bench").glob("**/*.py"))]:
            self.env.note_dependency(str(path))
        text = type(self).make(*self.arguments)
        box = nodes.container(classes=["lossbook-table", self.name])
        self.state.nested_parse(StringList(text.splitlines(), source=self.env.docname), 0, box)
        return [box]


def _directive(make: Callable[..., str]) -> type[_Generated]:
    members = {"make": staticmethod(make), "required_arguments": len(inspect.signature(make).parameters)}
    return type(f"Lossbook{make.__name__.title()}", (_Generated,), members)


_DIRECTIVES = {
    "lossbook-contents": pages.contents,
    "lossbook-part": pages.part,
    "lossbook-totals": pages.totals,
    "lossbook-verdicts": pages.verdicts,
    "lossbook-scoreboard": pages.claims_table,
    "lossbook-run-times": pages.run_times,
    "lossbook-benchmarks": pages.benchmarks,
    "lossbook-compiled": pages.compiled,
    "lossbook-floors": floors_table,
    "lossbook-decode-attention": pages.decode_attention,
    "lossbook-decode-floors": pages.decode_floors,
}
_assign_from_one = Collector.assign_section_numbers


def _assign_section_numbers(self: Collector, env: BuildEnvironment) -> list[str]:
    """Number sections as Sphinx does, but give each chapter its own number in place of its rank among those written.

    Figures, equations and exercises take their first number from the section's, so they follow.  The pages that
    open a part and close it with a comparison have none.
    """
    before = copy.deepcopy(env.toc_secnumbers)
    _assign_from_one(self, env)
    for docname, numbers in env.toc_secnumbers.items():
        titles = (env.titles[docname], *env.tocs[docname].findall(nodes.reference))
        if found := _CHAPTER.match(docname):
            chapter = int(found[1])
            env.toc_secnumbers[docname] = {
                anchor: number and (chapter, *number[1:]) for anchor, number in numbers.items()
            }
            for node in titles:
                if node.get("secnumber"):
                    node["secnumber"] = [chapter, *node["secnumber"][1:]]
        elif _UNNUMBERED.match(docname):
            env.toc_secnumbers[docname] = {}
            for node in titles:
                node.attributes.pop("secnumber", None)
    return [docname for docname, numbers in env.toc_secnumbers.items() if numbers != before.get(docname)]


def _name_planned_chapter(
    _app: Sphinx, _env: BuildEnvironment, link: nodes.Element, shown: nodes.Element
) -> nodes.Node | None:
    """Show the title of a notebook in place of a link to it where it is planned and not written yet.

    The package may be ahead of the book: the docstring of a loss links to its chapter from the first day.
    """
    if link["reftype"] != "doc":
        return None
    slug = link["reftarget"].removeprefix("/notebooks/")
    planned = next((info for info in catalog.notebooks() if info.slug == slug and not info.written), None)
    if planned is None:
        return None
    return shown if link["refexplicit"] else nodes.inline("", f"{planned.title}, planned")


def _match_widget_script(_app: Sphinx, config: Config) -> None:
    """Load the widget script that belongs to the installed ipywidgets, in place of MyST-NB's fixed older one."""
    scripts = dict(config.nb_ipywidgets_js)
    for address in [address for address in scripts if "html-manager" in address]:
        scripts[DEFAULT_EMBED_REQUIREJS_URL] = scripts.pop(address)
    config.nb_ipywidgets_js = scripts


def _locate_widget_fonts(app: Sphinx, page: str, *_: object) -> None:
    """Tell require.js where the widget script comes from: it looks for its fonts beside that, not beside the page."""
    if NbMetadataCollector.get_js_files(app.env, page):
        name = "@jupyter-widgets/html-manager/dist/libembed-amd"
        paths = {name: DEFAULT_EMBED_REQUIREJS_URL.removesuffix("embed-amd.js") + "libembed-amd"}
        app.add_js_file(None, body=f"var require = {json.dumps({'paths': paths})};", priority=100)


def _notice_changed_looks(_app: Sphinx, config: Config) -> None:
    """Build every page anew when styles, scripts or this package change, which Sphinx would not notice."""
    files = sorted([*(pages.ROOT / "book" / "_static").rglob("*.*"), *Path(__file__).parent.glob("*.py")])
    config.lossbook_looks = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives, the widget scripts and the numbering with Sphinx.

    Args:
        app: The Sphinx application.

    Returns:
        What Sphinx wants to know of an extension.
    """
    for name, make in _DIRECTIVES.items():
        app.add_directive(name, _directive(make))
    app.add_config_value("lossbook_looks", "", "env", types=[str])
    app.connect("config-inited", _notice_changed_looks)
    app.connect("config-inited", _match_widget_script)
    app.connect("html-page-context", _locate_widget_fonts)
    app.connect("missing-reference", _name_planned_chapter)
    Collector.assign_section_numbers = _assign_section_numbers
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
