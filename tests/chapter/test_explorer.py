"""Explorers: the static stack, the live sliders, and their limits."""

import re

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pytest

from lossbook.chapter import explore, explorer


def draw(**values):
    figure, axes = plt.subplots()
    axes.plot([0, float(sum(v for v in values.values() if not isinstance(v, str)))])
    return figure


@pytest.fixture
def shown(monkeypatch):
    outputs = []
    monkeypatch.setattr(explorer, "display", outputs.append)
    return outputs


@pytest.fixture
def live(monkeypatch):
    monkeypatch.setenv("LOSSBOOK_STATIC", "0")


@pytest.fixture
def static(monkeypatch):
    monkeypatch.setenv("LOSSBOOK_STATIC", "1")


def frames(stack):
    return [leaf for child in stack.children for leaf in (frames(child) if hasattr(child, "children") else [child])]


def test_static_draws_every_grid_point_once(shown, static):
    explore(draw, a=[1, 2, 3], b=[0.1, 0.2], alt="a is {a} and b is {b}", start={"a": 1})
    *sliders, stack = shown[0].children
    assert [slider.index for slider in sliders] == [0, 1]
    pictures = [frame.value for frame in frames(stack)]
    assert [re.search('alt="([^"]*)"', p)[1] for p in pictures] == [
        f"a is {a} and b is {b}" for a in (1, 2, 3) for b in (0.1, 0.2)
    ]
    assert len(set(pictures)) == 6
    assert stack.selected_index == 0
    assert "<noscript><img" in shown[1].data
    assert not plt.get_fignums()


def test_static_links_live_in_the_browser(shown, static, monkeypatch):
    """A Python callback would need a kernel: the only links are the browser's own."""
    linked = []
    monkeypatch.setattr(explorer.widgets, "jslink", lambda source, target: linked.append((source, target)))
    explore(draw, a=[1, 2], b=[3, 4, 5], alt="a {a} b {b}")
    a, b, stack = shown[0].children
    assert ((a, "index"), (stack, "selected_index")) in linked
    assert {source for source, _ in linked} == {(a, "index"), (b, "index")}
    assert len(linked) == 1 + len(stack.children)


def test_live_recomputes(shown, live):
    explore(draw, a=[1.0, 2.0, 3.0], alt="a {a}", formats={"a": lambda v: f"{v:.2f}"})
    slider, frame = shown[0].children
    assert isinstance(slider, widgets.FloatSlider)
    before = frame.value
    slider.value = 2.4
    assert frame.value != before
    assert 'alt="a 2.40"' in frame.value


def test_live_shows_errors_in_place(shown, live):
    def fails(a):
        if a > 1:
            raise ValueError("a must be <= 1, got <2>")
        return draw(a=a)

    explore(fails, a=[0, 1, 2], alt="a {a}", start={"a": 0})
    slider, frame = shown[0].children
    slider.value = 2
    assert "a must be &lt;= 1, got &lt;2&gt;" in frame.value
    slider.value = 1
    assert "<img" in frame.value


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, 3], widgets.IntSlider),
        ([0.5, 1.0], widgets.FloatSlider),
        ([1e-3, 1.0], widgets.FloatLogSlider),
        (["x", "y"], widgets.SelectionSlider),
    ],
)
def test_live_control_follows_the_grid(shown, live, values, kind):
    explore(draw, a=values, alt="a {a}")
    assert type(shown[0].children[0]) is kind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one or two grids, got 0"),
        ({"a": [1], "b": [1], "c": [1]}, "one or two grids, got 3"),
        ({"a": []}, "grid a must hold 1 to 12 values, got 0"),
        ({"a": [1], "b": range(7)}, "grid b must hold 1 to 6 values, got 7"),
        ({"a": [1], "start": {"a": 2}}, r"start\['a'\] must be a value of that grid, got 2"),
    ],
)
def test_limits(options, message):
    with pytest.raises(ValueError, match=message):
        explore(draw, alt="x", **options)


def test_empty_alternative_text_is_refused(shown, static):
    with pytest.raises(ValueError, match="alt must say what the picture shows"):
        explore(draw, a=[1], alt=" ")
    plt.close("all")
