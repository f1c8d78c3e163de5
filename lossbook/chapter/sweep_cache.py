"""Finished results of a sweep on disk, each under a digest of all that it depends on."""

from __future__ import annotations

import dis
import hashlib
import os
import pickle
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from joblib.hashing import NumpyHasher

import lossbook
from lossbook.chapter.core import Chapter

MISSING = object()  # what load returns where there is no result
_DIGEST_SIZE = hashlib.sha256().digest_size
_CODE_PARTS = ("co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_flags", "co_code", "co_consts")
_CODE_NAMES = ("co_names", "co_varnames", "co_freevars", "co_cellvars")


class SweepCache:
    """The results of one function for a list of configurations, one file each, in a folder.

    A file holds the SHA-256 digest of a pickle, then the pickle, and is put in place in one step.

    Args:
        folder: The folder, made if missing.
        function: The function.
        configurations: Its configurations; results are loaded and saved by their position.

    Raises:
        TypeError: If the function or a configuration holds something whose state can not be told by pickling it.
        OSError: If the folder can not be made.
    """

    def __init__(self, folder: Path, function: Callable[..., Any], configurations: Sequence[Mapping[str, Any]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = getattr(function, "__qualname__", type(function).__qualname__)
        state = digest([versions(), function], f"function {name}")
        self._paths = [
            folder / f"{re.sub(r'[^A-Za-z0-9_]+', '-', name)}-{key}.pickle"
            for key in (
                digest([state, dict(configuration)], f"configurations[{index}]")
                for index, configuration in enumerate(configurations)
            )
        ]

    def load(self, index: int) -> Any:
        """The result of a configuration, or ``MISSING``; a damaged file counts as missing, with a warning."""
        path = self._paths[index]
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return MISSING
        payload = content[_DIGEST_SIZE:]
        if hashlib.sha256(payload).digest() != content[:_DIGEST_SIZE]:
            warnings.warn(f"{path} is damaged: its result is computed again", RuntimeWarning, stacklevel=3)
            return MISSING
        return pickle.loads(payload)

    def save(self, index: int, result: Any) -> None:
        """Store the result of a configuration."""
        payload = pickle.dumps(result, protocol=pickle.HIGHEST_PROTOCOL)
        path = self._paths[index]
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(payload).digest() + payload)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise


def versions() -> tuple[str, ...]:
    """What a result depends on beside the function and its configuration."""
    return platform.python_version(), torch.__version__, lossbook.__version__


def digest(thing: Any, name: str) -> str:
    """A digest of a value that is the same in every process.

    Args:
        thing: The value.
        name: What it is called in the error.

    Returns:
        40 hexadecimal digits.

    Raises:
        TypeError: If it holds something that can not be pickled.
    """
    try:
        return _StateHasher(hash_name="sha1").hash(thing)
    except Exception as error:
        raise TypeError(
            f"{name} must depend on values that can be pickled for its results to be cached, got {error}"
        ) from error


class _StateHasher(NumpyHasher):
    """joblib's hash of a value, where code counts by what it does and tensors by what they hold.

    joblib hashes functions and classes by name, and pickled tensors by their place in memory.
    """

    def __init__(self, hash_name: str) -> None:
        super().__init__(hash_name=hash_name)
        self._begun: set[int] = set()

    def reducer_override(self, thing: Any) -> Any:
        state = self._state(thing)
        if state is None:
            return NotImplemented
        if isinstance(thing, FunctionType | type):
            if id(thing) in self._begun:  # it refers to itself, and is described one level up
                state = thing.__qualname__
            self._begun.add(id(thing))
        return tuple, ((type(thing).__name__, state),)

    def _state(self, thing: Any) -> Any:
        """What stands for a value, or None if its pickle does."""
        if isinstance(thing, torch.Tensor):
            entries = thing.detach().cpu().contiguous().reshape(-1)
            return str(thing.dtype), tuple(thing.shape), entries.view(torch.uint8).numpy()
        if isinstance(thing, FunctionType):
            known = thing.__module__, thing.__qualname__, thing.__code__
            return known if _importable(thing) else (*known, *_surroundings(thing))
        if isinstance(thing, CodeType):
            return [getattr(thing, part) for part in (*_CODE_PARTS, *_CODE_NAMES)]
        if isinstance(thing, type) and not _importable(thing):
            return thing.__qualname__, thing.__bases__, dict(_members(thing))
        if isinstance(thing, ModuleType):
            return thing.__name__
        if isinstance(thing, frozenset):
            return sorted(map(repr, thing))
        if isinstance(thing, Chapter):
            return repr(thing)  # and not the claims measured so far
        return None


def _importable(thing: FunctionType | type) -> bool:
    """Whether it comes from a module, where its name and version stand for it; a notebook's own code does not."""
    if thing.__module__ == "__main__":
        return False
    found: Any = sys.modules.get(thing.__module__)
    for part in thing.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is thing


def _surroundings(function: FunctionType) -> tuple[Any, ...]:
    """The values that a function reads from outside: defaults, enclosing variables and global ones."""
    names = {name for name in _global_names(function.__code__) if name in function.__globals__}
    enclosing = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    read = {name: function.__globals__[name] for name in sorted(names)}
    return function.__defaults__, function.__kwdefaults__, enclosing, read


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - reading an empty cell raises
    except ValueError:
        return False
    return True


def _global_names(code: CodeType) -> Iterator[str]:
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield step.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """What a class defines: methods, wrapped or not, and its own plain values."""
    for name, member in vars(cls).items():
        if isinstance(member, classmethod | staticmethod):
            yield name, member.__func__
        elif isinstance(member, property):
            yield name, (member.fget, member.fset, member.fdel)
        elif isinstance(member, FunctionType) or not name.startswith("__"):
            yield name, member
