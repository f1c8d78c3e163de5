"""Every public name is documented completely, its examples run, and its displayed formula is the code's."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap

import pytest
import torch
from contract import CASES, DISPLAYS, Case, Display

import lossbook

# What readers look up with a formula in mind: these need Raises, Examples and a link to their chapter in every case.
STRICT = ("lossbook.losses", "lossbook.kernels")
_HEADINGS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Examples", "Note", "Notes", "References", "See Also")
_CHAPTER_LINK = re.compile(r":doc:`/notebooks/\d\d_\w+`")


def modules():
    """Every public module of the package."""
    found = pkgutil.walk_packages(lossbook.__path__, "lossbook.")
    return sorted(m.name for m in found if not any(part.startswith("_") for part in m.name.split(".")))


def public_objects():
    """Functions and classes in ``__all__`` of each direct subpackage or module, as ``(owner, name, object)``."""
    for module in pkgutil.iter_modules(lossbook.__path__, "lossbook."):
        loaded = None if module.name.split(".")[1].startswith("_") else importlib.import_module(module.name)
        for name in getattr(loaded, "__all__", ()):
            thing = getattr(loaded, name)
            if inspect.isclass(thing) or inspect.isroutine(thing):
                yield module.name, name, thing


def methods(cls):
    """Public functions a class itself introduces; those it overrides are documented where they come from."""
    inherited = {name for base in cls.__mro__[1:] for name in vars(base)}
    for name, member in vars(cls).items():
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if not name.startswith("_") and name not in inherited and inspect.isfunction(function):
            yield name, function


def documented():
    """Test parameters: every public function, class and method."""
    for owner, name, thing in public_objects():
        yield pytest.param(owner, thing, id=f"{owner}.{name}")
        if inspect.isclass(thing):
            for method_name, method in methods(thing):
                yield pytest.param("method", method, id=f"{owner}.{name}.{method_name}")


def sections(doc):
    """Split a Google-style docstring: heading -> body; the summary and what follows it under ``""``."""
    parts = re.split(rf"^({'|'.join(_HEADINGS)}):$", doc, flags=re.MULTILINE)
    headed = zip(parts[1::2], parts[2::2], strict=True)
    return {"": parts[0]} | {heading: textwrap.dedent(body).strip() for heading, body in headed}


def entries(body):
    """Names explained in an ``Args``-like section."""
    return set(re.findall(r"^\*{0,2}(\w+)(?: \([^)]*\))?:", body, flags=re.MULTILINE))


def is_exception(thing):
    return inspect.isclass(thing) and issubclass(thing, BaseException)


def parameters(thing):
    """Names a caller may pass; exceptions are caught, not called."""
    names = [] if is_exception(thing) else inspect.signature(thing).parameters
    return {name for name in names if name not in ("self", "cls") and not name.startswith("_")}


def raises(function):
    """Whether the function's own body raises something."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(tree))


def returns_something(function):
    annotation = inspect.signature(function).return_annotation
    return annotation not in (None, "None", inspect.Signature.empty)


def missing_parts(owner, thing):
    """What the docstring lacks, in words."""
    doc = inspect.getdoc(thing)
    if not doc:
        return ["a docstring"]
    found, missing = sections(doc), []
    summary = doc.splitlines()[0]
    if not summary.endswith((".", "?", ":")) or (len(doc.splitlines()) > 1 and doc.splitlines()[1]):
        missing.append("a summary of one line")
    explained = entries(found.get("Args", "")) | entries(found.get("Attributes", ""))
    missing += [f"{name} in Args" for name in sorted(parameters(thing) - explained)]
    if not inspect.isclass(thing):
        missing += [f"no {name} in Args: it has no such parameter" for name in sorted(explained - parameters(thing))]
        if returns_something(thing) and not {"Returns", "Yields"} & found.keys():
            missing.append("Returns")
        if raises(thing) and "Raises" not in found:
            missing.append("Raises")
    if owner.startswith(STRICT) and not is_exception(thing):
        missing += [heading for heading in ("Examples", "References") if heading not in found]
        if not inspect.isclass(thing) and "Raises" not in found:
            missing.append("Raises")
        if not _CHAPTER_LINK.search(doc):
            missing.append("a link to its chapter, :doc:`/notebooks/NN_name`")
    return missing


@pytest.mark.parametrize(("owner", "thing"), list(documented()))
def test_docstring_is_complete(owner, thing):
    missing = missing_parts(owner, thing)
    assert not missing, f"the docstring needs {', '.join(dict.fromkeys(missing))}"


@pytest.mark.parametrize("name", modules())
def test_examples_run(name):
    module = importlib.import_module(name)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, optionflags=options, report=True)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples failed; see the captured output"


def displayed_formulas(doc):
    """The text of each ``.. math::`` block, of both the one-line and the indented form."""
    blocks, lines = [], doc.splitlines()
    for number, line in enumerate(lines):
        if not line.lstrip().startswith(".. math::"):
            continue
        indent = len(line) - len(line.lstrip())
        block = [line.split(".. math::", 1)[1].strip()]
        for following in lines[number + 1 :]:
            if following.strip() and len(following) - len(following.lstrip()) <= indent:
                break
            block.append(following.strip())
        blocks.append("\n".join(part for part in block if part))
    return tuple(blocks)


def as_display(case: Case) -> Display:
    """What a loss displays, compared with its value for each example."""

    def compare(generator):
        inputs = case.make_inputs(7, torch.float64, generator)
        inputs |= case.formula.options(inputs, generator)
        unreduced = {"reduction": "none"} if case.reductions else {}
        return case.function(**inputs, **unreduced), case.formula.naive(**inputs)

    return Display(case.documented, case.formula.displayed, compare)


ALL_DISPLAYS = (*map(as_display, CASES), *DISPLAYS)

every_display = pytest.mark.parametrize("display", ALL_DISPLAYS, ids=lambda display: display.documented.__name__)


def test_every_displayed_formula_is_listed():
    shown = {
        name for owner, name, thing in public_objects() if owner in STRICT and ".. math::" in (thing.__doc__ or "")
    }
    missing = shown - {display.documented.__name__ for display in ALL_DISPLAYS}
    assert not missing, f"add a Case or a Display in tests/contract for {sorted(missing)}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_loss_displays_its_formula(case: Case):
    assert case.formula.displayed


@every_display
def test_displayed_formula_is_the_pinned_one(display: Display):
    """A changed formula fails here until its naive implementation in ``tests/contract`` was changed as well."""
    assert displayed_formulas(inspect.getdoc(display.documented)) == display.displayed


@every_display
def test_displayed_formula_is_what_the_code_computes(display: Display, generator):
    computed, expected = display.compare(generator)
    torch.testing.assert_close(computed, expected, rtol=1e-12, atol=1e-12)


def test_formulas_are_found_in_both_forms():
    doc = "Sum.\n\n.. math:: a + b .\n\nText.\n\n.. math::\n\n    c = d\n    + e\n\nArgs:\n    x: It."
    assert displayed_formulas(doc) == ("a + b .", "c = d\n+ e")


def test_incomplete_docstrings_are_found():
    def function(a, b=1) -> int:
        """Add.

        Args:
            a: First.
            c: Not there.
        """
        if b:
            raise ValueError
        return a

    missing = missing_parts("lossbook.losses", function)
    assert {"b in Args", "no c in Args: it has no such parameter", "Returns", "Raises", "Examples"} <= set(missing)
