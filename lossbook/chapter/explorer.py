"""Explorers: sliders over a loss's hyperparameters and the picture that answers them.

One call serves both readers.  In a live kernel the sliders are continuous and every move recomputes.  When a
chapter is executed for the book, every grid point is drawn once and the frames are stacked; the sliders are linked
to the stack in the browser, so the published page responds with no kernel behind it.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
from IPython.display import HTML, display
from matplotlib.figure import Figure
from PIL import Image

MAX_FRAMES = (12, 6)  # keeps a notebook under 1 MB
_LOG_RANGE = 30.0  # a numeric grid spanning more than this factor gets a logarithmic live slider


def static_mode() -> bool:
    """Whether explorers render for a page without a kernel instead of live.

    Returns:
        True if the environment variable ``LOSSBOOK_STATIC`` is ``1``, ``true`` or ``yes``.
    """
    return os.environ.get("LOSSBOOK_STATIC", "0").lower() in {"1", "true", "yes"}


def explore(
    draw: Callable[..., Figure],
    *,
    alt: str | Callable[..., str],
    labels: Mapping[str, str] | None = None,
    formats: Mapping[str, Callable[[Any], str]] | None = None,
    start: Mapping[str, Any] | None = None,
    **grids: Sequence[Any],
) -> None:
    """Show a figure that answers one or two sliders, on the published page and in a live kernel.

    Args:
        draw: Called with one keyword argument per grid; returns a new matplotlib figure.
        alt: Alternative text of the picture: a format string over the grids' names, or a function of the same
            keyword arguments as ``draw``.
        labels: What to print beside each slider; default: the grid's name.
        formats: How to print a value of a grid; default: ``str``.
        start: Value each slider begins at, one of its grid; default: the middle.
        **grids: One or two named sequences of values: at most 12 for the first, 6 for the second.

    Returns:
        None; the explorer is displayed.

    Raises:
        ValueError: If there is no grid, more than two, an empty or too long one, or a start outside its grid.
    """
    _check(grids, start or {})
    labels = {name: (labels or {}).get(name, name) for name in grids}
    formats = {name: (formats or {}).get(name, str) for name in grids}
    begin = {
        name: list(values).index((start or {}).get(name, values[len(values) // 2])) for name, values in grids.items()
    }

    def picture(**values: Any) -> str:
        shown = {name: formats[name](value) for name, value in values.items()}
        text = alt(**values) if callable(alt) else alt.format(**shown)
        return image_html(draw(**values), text)

    if static_mode():
        _show_static(picture, grids, labels, formats, begin)
    else:
        _show_live(picture, grids, labels, formats, begin)


def image_html(figure: Figure, alt: str, *, dpi: int = 100, colors: int = 40) -> str:
    """Render a figure to an HTML image element holding a small palette PNG, and close the figure.

    Args:
        figure: The figure.
        alt: Alternative text, not empty.
        dpi: Resolution in dots per inch.
        colors: Size of the palette, 2 to 256.

    Returns:
        The element as text.

    Raises:
        ValueError: If ``alt`` is empty.
    """
    if not alt.strip():
        raise ValueError("alt must say what the picture shows, got an empty string")
    buffer, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    plt.close(figure)
    image = Image.open(buffer).convert("RGB").quantize(colors, dither=Image.Dither.NONE)
    image.save(packed, format="png", optimize=True)
    data = base64.b64encode(packed.getvalue()).decode()
    width = round(image.width * 96 / dpi)
    return f'<img class="lossbook-frame" src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{width}">'


def _check(grids: Mapping[str, Sequence[Any]], start: Mapping[str, Any]) -> None:
    if not 1 <= len(grids) <= 2:
        raise ValueError(f"explore takes one or two grids, got {len(grids)}: {', '.join(grids) or 'none'}")
    for (name, values), limit in zip(grids.items(), MAX_FRAMES, strict=False):
        if not 1 <= len(values) <= limit:
            raise ValueError(f"grid {name} must hold 1 to {limit} values, got {len(values)}")
    for name, value in start.items():
        if name not in grids or value not in list(grids[name]):
            raise ValueError(f"start[{name!r}] must be a value of that grid, got {value!r}")


def _show_static(picture, grids, labels, formats, begin) -> None:
    """Nested stacks of pre-drawn frames, linked to selection sliders by the browser alone."""
    names = list(grids)
    sliders = {
        name: widgets.SelectionSlider(
            options=[(formats[name](value), index) for index, value in enumerate(grids[name])],
            index=begin[name],
            description=labels[name],
            continuous_update=True,
            style={"description_width": "initial"},
            layout={"width": "min(100%, 30rem)"},
        )
        for name in names
    }

    def stack(frames: list[widgets.Widget], name: str) -> widgets.Stack:
        stacked = widgets.Stack(frames, selected_index=begin[name])
        widgets.jslink((sliders[name], "index"), (stacked, "selected_index"))
        return stacked

    first, second = names[0], names[1] if len(names) == 2 else None
    outer = []
    for value in grids[first]:
        if second is None:
            outer.append(widgets.HTML(picture(**{first: value})))
        else:
            inner = [widgets.HTML(picture(**{first: value, second: other})) for other in grids[second]]
            outer.append(stack(inner, second))
    frames = stack(outer, first)
    display(widgets.VBox([*sliders.values(), frames]))
    shown = {name: grids[name][begin[name]] for name in names}
    display(HTML(f"<noscript>{picture(**shown)}</noscript>"))


def _show_live(picture, grids, labels, formats, begin) -> None:
    """Continuous sliders that call ``draw`` again; an error is shown where the picture would be."""
    controls = {name: _control(list(grids[name]), labels[name], formats[name], begin[name]) for name in grids}
    frame = widgets.HTML()

    def redraw(_change: object = None) -> None:
        try:
            frame.value = picture(**{name: control.value for name, control in controls.items()})
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            frame.value = f'<p role="alert"><strong>{type(error).__name__}</strong>: {escape(str(error))}</p>'

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    display(widgets.VBox([*controls.values(), frame]))


def _control(values: list[Any], label: str, form: Callable[[Any], str], begin: int) -> widgets.Widget:
    common = {
        "description": label,
        "continuous_update": False,
        "style": {"description_width": "initial"},
        "layout": {"width": "min(100%, 30rem)"},
    }
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        options = [(form(value), value) for value in values]
        return widgets.SelectionSlider(options=options, index=begin, **common)
    low, high = min(values), max(values)
    if all(isinstance(value, int) for value in values):
        return widgets.IntSlider(value=values[begin], min=low, max=high, **common)
    if low > 0 and high / low > _LOG_RANGE:
        from math import log2

        return widgets.FloatLogSlider(
            value=values[begin], base=2, min=log2(low), max=log2(high), step=0.25, readout_format=".3g", **common
        )
    return widgets.FloatSlider(
        value=values[begin], min=low, max=high, step=(high - low) / 100 or 0.01, readout_format=".3g", **common
    )
