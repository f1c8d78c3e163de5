"""The one error of :mod:`lossbook.data`."""

from __future__ import annotations

from pathlib import Path


class DataError(RuntimeError):
    """A data set or model is missing, damaged or cannot be fetched.

    The message is one sentence that says what is wrong and ends with the command that mends it.

    Args:
        problem: What is wrong, without a final full stop.
        mend: The command to run, shown after ``run:``.

    Examples:
        >>> print(DataError("the SmolLM2 weights are missing", "lossbook fetch smollm2"))
        the SmolLM2 weights are missing; run: lossbook fetch smollm2
    """

    def __init__(self, problem: str, mend: str):
        super().__init__(f"{problem}; run: {mend}")
        self.problem = problem
        self.mend = mend

    def __reduce__(self):
        # RuntimeError would be rebuilt from the joined message alone, which has one argument too few.
        return type(self), (self.problem, self.mend)


def shipped_mend(folder: Path) -> str:
    """Return the command that restores a folder of files shipped with the package, in a checkout or an installation."""
    root = folder.parents[2]
    if (root / ".git").exists():
        return f"git -C {root} checkout -- {folder.relative_to(root).as_posix()}"
    return "pip install --force-reinstall --no-deps lossbook"
