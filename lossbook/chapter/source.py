"""Show the lines of the package that a chapter explains, read from the source instead of pasted."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Iterator

from IPython.display import Markdown, display


def show_source(function: Callable | str, *parts: tuple[str, str]) -> None:
    """Display a function's source without its docstring, as a highlighted block of Python.

    Args:
        function: A Python function or class, or its full dotted name.  What is defined under that very name is read
            without importing its module, so a GPU kernel can be shown where its compiler is not installed.
        *parts: Show these parts only, in the order of the source, with ``# ...`` where lines are left out: pairs of a
            text in the part's first line and a text in its last, the same line if it holds both. Default: everything.

    Returns:
        None.

    Raises:
        TypeError: If the object has no Python source.
        ImportError: If a dotted name leads nowhere.
        ValueError: If a part is not found after the end of the one before.

    Examples:
        >>> source_of(show_source).splitlines()[0]
        'def show_source(function: Callable | str, *parts: tuple[str, str]) -> None:'
    """
    display(Markdown(f"```python\n{source_of(function, *parts)}\n```"))


def source_of(function: Callable | str, *parts: tuple[str, str]) -> str:
    """A function's source without its docstring; comments stay.

    Args:
        function: As for :func:`show_source`.
        *parts: As for :func:`show_source`.

    Returns:
        The dedented source text.

    Raises:
        TypeError: As for :func:`show_source`.
        ImportError: As for :func:`show_source`.
        ValueError: As for :func:`show_source`.
    """
    text = textwrap.dedent(_defined_as(function) if isinstance(function, str) else _text_of(function))
    definition = ast.parse(text).body[0]
    lines = text.rstrip().splitlines()
    if ast.get_docstring(definition) is not None:
        docstring = definition.body[0]
        del lines[docstring.lineno - 1 : docstring.end_lineno]
    return textwrap.dedent("\n".join(_excerpts(lines, parts))) if parts else "\n".join(lines)


def _text_of(function: Callable) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError) as error:
        raise TypeError(f"function must be written in Python, got {function!r}") from error


def _defined_as(name: str) -> str:
    """The text of a definition by its dotted name; a name imported from elsewhere is followed by importing it."""
    module, _, attribute = name.rpartition(".")
    text = _module_text(module)
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == attribute:
            first = min(part.lineno for part in (node, *node.decorator_list))
            return "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    try:
        return _text_of(pkgutil.resolve_name(name))
    except (AttributeError, ValueError) as error:
        raise ImportError(f"function must be the dotted name of a Python function or class, got {name!r}") from error


def _module_text(name: str) -> str:
    """The text of a module; empty if it is compiled, or no module at all but a class."""
    try:
        spec = importlib.util.find_spec(name) if name else None
    except ModuleNotFoundError:
        return ""
    return (spec and spec.loader.get_source(name)) or ""


def _excerpts(lines: list[str], parts: tuple[tuple[str, str], ...]) -> Iterator[str]:
    position = 0
    for first, last in parts:
        start = _find(lines, first, position)
        end = _find(lines, last, start) + 1
        if position and start > position:
            indent = len(lines[start]) - len(lines[start].lstrip())
            yield " " * indent + "# ..."
        yield from lines[start:end]
        position = end


def _find(lines: list[str], text: str, position: int) -> int:
    for number, line in enumerate(lines[position:], start=position):
        if text in line:
            return number
    raise ValueError(
        f"parts must name lines in the order of the source, got {text!r}, which no line from there on holds"
    )
