"""What makes a notebook a chapter: profiles, claims, explorers, figures, training loops and the scoreboard.

Names are imported on first use: listing the book's chapters needs neither torch nor matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossbook.chapter.claims import Claim, ClaimsFileError, Criterion, load_claims
    from lossbook.chapter.core import Chapter, ClaimsFailedError, Comparison
    from lossbook.chapter.explorer import explore, static_mode
    from lossbook.chapter.figures import METHODS, PALETTE, color, style, use_style
    from lossbook.chapter.repeatability import limit_threads, seed_everything
    from lossbook.chapter.source import show_source
    from lossbook.chapter.sweeps import sweep
    from lossbook.chapter.training import History, train

_HOMES = {
    "claims": ("Claim", "ClaimsFileError", "Criterion", "load_claims"),
    "core": ("Chapter", "ClaimsFailedError", "Comparison"),
    "explorer": ("explore", "static_mode"),
    "figures": ("METHODS", "PALETTE", "color", "style", "use_style"),
    "repeatability": ("limit_threads", "seed_everything"),
    "source": ("show_source",),
    "sweeps": ("sweep",),
    "training": ("History", "train"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "METHODS",
    "PALETTE",
    "Chapter",
    "Claim",
    "ClaimsFailedError",
    "ClaimsFileError",
    "Comparison",
    "Criterion",
    "History",
    "color",
    "explore",
    "limit_threads",
    "load_claims",
    "seed_everything",
    "show_source",
    "static_mode",
    "style",
    "sweep",
    "train",
    "use_style",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
