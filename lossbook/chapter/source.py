"""Show the lines of the package that a chapter explains, read from the source instead of pasted."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import textwrap
from collections.abc import Callable

from IPython.display import Markdown, display


def show_source(function: Callable | str) -> None:
    """Display a function's source without its docstring, as a highlighted block of Python.

    Args:
        function: A Python function or class, or its full dotted name.

    Returns:
        None.

    Raises:
        TypeError: If the object has no Python source.
        ImportError: If a dotted name leads nowhere.

    Examples:
        >>> source_of(show_source).splitlines()[0]
        'def show_source(function: Callable | str) -> None:'
    """
    found = pkgutil.resolve_name(function) if isinstance(function, str) else function
    display(Markdown(f"```python\n{source_of(found)}\n```"))


def source_of(function: Callable) -> str:
    """A function's source without its docstring; comments stay.

    Args:
        function: A Python function or class.

    Returns:
        The dedented source text.

    Raises:
        TypeError: If the object has no Python source.
    """
    try:
        text = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise TypeError(f"function must be written in Python, got {function!r}") from error
    definition = ast.parse(text).body[0]
    lines = text.rstrip().splitlines()
    if ast.get_docstring(definition) is not None:
        docstring = definition.body[0]
        del lines[docstring.lineno - 1 : docstring.end_lineno]
    return "\n".join(lines)
