"""A docstring may link to the chapter of its paper before that is written."""

import pytest
from sphinx import addnodes

from lossbook.chapter import catalog
from lossbook.site import sphinx_ext

SHOWN = sphinx_ext.nodes.inline("", "the chapter on ranking")


@pytest.fixture
def unwritten(monkeypatch, tmp_path):
    """The plan as it stands before any notebook exists."""
    monkeypatch.setattr(catalog, "notebooks_dir", lambda: tmp_path)
    assert not catalog.find(8).written


def link(target, explicit=False, reftype="doc"):
    return addnodes.pending_xref("", reftype=reftype, reftarget=target, refexplicit=explicit)


def resolve(node):
    return sphinx_ext._name_planned_chapter(None, None, node, SHOWN)


def test_a_planned_chapter_is_named_without_a_link(unwritten):
    text = resolve(link("/notebooks/08_mann_whitney")).astext()
    assert text == f"{catalog.find(8).title}, planned"
    assert resolve(link("/notebooks/08_mann_whitney", explicit=True)) is SHOWN


def test_other_missing_pages_still_fail(unwritten):
    assert resolve(link("/notebooks/08_man_whitney")) is None
    assert resolve(link("/book/nothing")) is None
    assert resolve(link("/notebooks/08_mann_whitney", reftype="ref")) is None


def test_a_written_chapter_that_is_missing_fails():
    assert catalog.find(17).written
    assert resolve(link("/notebooks/17_cut_cross_entropy")) is None
