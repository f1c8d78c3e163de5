"""The cases of the contract, one module per family: every ``CASES`` and ``DISPLAYS`` found there is tested.

To add a loss, append a ``Case`` to ``CASES`` of its family's module, or start a module.  Needed are the function, a
plain-torch reference with the same arguments, seeded inputs of any batch size, the calls it must refuse, and the
formula its docstring displays beside a naive float64 implementation of that formula.
"""

import importlib
import pkgutil

from contract.base import Case, Display

_families = [
    importlib.import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules(__path__)
    if module.name != "base"
]
CASES: tuple[Case, ...] = tuple(case for family in _families for case in getattr(family, "CASES", ()))
DISPLAYS: tuple[Display, ...] = tuple(shown for family in _families for shown in getattr(family, "DISPLAYS", ()))
