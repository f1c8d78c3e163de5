"""The book's figure style: one look, one color per method, readable in print and by color-blind readers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import matplotlib as mpl

# Okabe and Ito's palette, chosen to stay apart under the common forms of color blindness.
PALETTE = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
    "gray": "#7F7F7F",
}


@dataclass(frozen=True)
class LineStyle:
    """How a method is drawn wherever it appears."""

    color: str
    marker: str
    linestyle: str


def _look(color: str, marker: str, linestyle: str = "-") -> LineStyle:
    return LineStyle(PALETTE[color], marker, linestyle)


# One entry per method of the book.  A new method gets a line here, never a color in a notebook.
METHODS: dict[str, LineStyle] = {
    "paper": _look("gray", "", "-"),
    "theory": _look("gray", "", "--"),
    "cross-entropy": _look("black", "o"),
    "dense": _look("black", "o"),
    "torch chunked": _look("sky", "D", "-."),
    "two-pass": _look("blue", "s"),
    "grad-in-forward": _look("green", "^"),
    "exact": _look("black", "o"),
    "tile filter": _look("orange", "v", "--"),
    "column filter": _look("vermilion", "P"),
    "column filter, FullC": _look("green", "X"),
    "entry filter": _look("purple", "d", ":"),
    "Double Sparsity": _look("vermilion", "o"),
    "window": _look("sky", "v", ":"),
    "Quest": _look("green", "s", "-."),
    "heavy hitters": _look("orange", "^", "--"),
    "oracle": _look("black", "*", "--"),
    "AUROC": _look("blue", "o"),
    "AUPRC": _look("vermilion", "s", "--"),
    "high prevalence": _look("orange", "^"),
    "low prevalence": _look("purple", "v", "--"),
    "one layer": _look("blue", "o"),
    "two layers": _look("vermilion", "s"),
    "three layers": _look("green", "^"),
    "four layers": _look("orange", "D"),
    "squared error": _look("sky", "D", "-."),
    "correctness-aware": _look("vermilion", "s"),
    "temperature scaling": _look("blue", "o"),
    "own softmax": _look("blue", "P", ":"),
    "CE + views": _look("black", "v", ":"),
    "MSE + views": _look("sky", "D", "-."),
    "CA + views": _look("orange", "^", "--"),
    "CA + views, balanced": _look("vermilion", "s"),
    "one temperature, balanced": _look("green", "X", ":"),
    "own softmax, balanced": _look("purple", "d", "-."),
    "gradient descent": _look("blue", "o"),
    "momentum": _look("green", "^"),
    "mini-batches": _look("orange", "v", "--"),
    "Adam": _look("vermilion", "s"),
    "early stopping": _look("sky", "D", "-."),
    "minimum norm": _look("black", "*", "--"),
    "sum-exponential": _look("sky", "v", ":"),
    "comp-sum 0.5": _look("blue", "^", "-."),
    "GCE": _look("green", "s"),
    "MAE": _look("vermilion", "D", "--"),
    "without smoothness": _look("sky", "v", ":"),
    "PGD training": _look("orange", "^", "--"),
    "TRADES": _look("blue", "s", "-."),
    "smooth adversarial": _look("purple", "o"),
    "LDR-KL": _look("orange", "^", "--"),
    "ALDR-KL": _look("blue", "s"),
    "PCR": _look("vermilion", "s"),
    "SCR": _look("blue", "^", "--"),
    "right label": _look("green", "o"),
    "wrong label": _look("vermilion", "X", "--"),
    "InfoNCE": _look("black", "o"),
    "Mann-Whitney": _look("vermilion", "s"),
    "RankNet": _look("blue", "^", "-."),
    "SigLIP": _look("green", "D", ":"),
    "one right answer": _look("blue", "o"),
    "all right answers": _look("vermilion", "s"),
    "one head": _look("blue", "o"),
    "three heads": _look("green", "^"),
    "one cold head": _look("sky", "D", "-."),
    "AMCL": _look("vermilion", "s"),
    "clean pairs": _look("black", "o"),
    "mixed embeddings": _look("vermilion", "s"),
    "mixed features": _look("blue", "^", "--"),
    "positive pair": _look("green", "o"),
    "negative pair": _look("orange", "X", "--"),
    "softmax": _look("black", "o"),
    "decoupled softmax": _look("vermilion", "s"),
    "SoftTop, small k": _look("blue", "^", "-."),
    "SoftTop, large k": _look("green", "D", "--"),
}


def style(method: str) -> dict[str, Any]:
    """Keyword arguments for ``Axes.plot`` that draw ``method`` as everywhere in the book.

    Args:
        method: A name in ``METHODS``.

    Returns:
        ``color``, ``marker`` and ``linestyle``.

    Raises:
        ValueError: If the method has no entry.

    Examples:
        >>> style("dense")["color"]
        '#000000'
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    return asdict(METHODS[method])


def color(method: str) -> str:
    """The color of ``method``; see :func:`style`.

    Args:
        method: A name in ``METHODS``.

    Returns:
        A hexadecimal color.

    Raises:
        ValueError: If the method has no entry.
    """
    return style(method)["color"]


def use_style() -> None:
    """Set matplotlib's defaults for the book: size, fonts, colors, an opaque white face and no frame on top and right.

    Returns:
        None.
    """
    cycle = [PALETTE[name] for name in ("blue", "vermilion", "green", "orange", "purple", "sky", "black")]
    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 110,
            "savefig.dpi": 150,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": mpl.cycler(color=cycle),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.25,
            "grid.linewidth": 0.6,
            "lines.linewidth": 1.8,
            "lines.markersize": 5,
            "font.size": 10,
            "axes.titlesize": 10.5,
            "axes.labelsize": 10,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "svg.hashsalt": "lossbook",
        }
    )
