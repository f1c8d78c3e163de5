"""A training loop with progress that can be interrupted and keeps what it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tqdm.auto import tqdm

from lossbook.chapter.explorer import static_mode


@dataclass
class History:
    """What a run recorded.

    Args:
        steps: Numbers of the recorded steps.
        values: Recorded values by name, one per recorded step.
        stopped: ``"finished"``, ``"interrupted"`` (the reader pressed stop) or ``"diverged"`` (a value was not finite).
    """

    steps: list[int] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    stopped: str = "finished"

    def __getitem__(self, name: str) -> list[float]:
        return self.values[name]

    def last(self, name: str) -> float:
        """The last recorded value.

        Args:
            name: Name of the quantity.

        Returns:
            Its value at the last recorded step.
        """
        return self.values[name][-1]

    def add(self, step: int, measured: Mapping[str, float]) -> None:
        """Record one step.

        Args:
            step: Number of the step.
            measured: Values by name.

        Returns:
            None.
        """
        self.steps.append(step)
        for name, value in measured.items():
            self.values.setdefault(name, []).append(value)


def train(
    step: Callable[[int], float | Mapping[str, float]],
    steps: int,
    *,
    record_every: int = 1,
    label: str = "training",
    progress: bool | None = None,
) -> History:
    """Call ``step(0)``, ``step(1)``, ... and record what it returns.

    Interrupting the kernel ends the loop after the current step and returns what was recorded so far.  A value that
    is not finite ends it too: what follows a NaN is no training.

    Args:
        step: Does one update and returns the loss, or several named values.
        steps: Number of steps, ``>= 0``.
        record_every: Record every so many steps, and always the last; ``>= 1``.
        label: Shown beside the progress bar.
        progress: Show a progress bar; default: only when the chapter runs live.

    Returns:
        The history; a plain number is recorded under ``"loss"``.

    Raises:
        ValueError: If ``steps`` or ``record_every`` is out of its range.

    Examples:
        >>> train(lambda i: 1.0 / (i + 1), 3)["loss"]
        [1.0, 0.5, 0.3333333333333333]
    """
    if steps < 0:
        raise ValueError(f"steps must be >= 0, got {steps}")
    if record_every < 1:
        raise ValueError(f"record_every must be >= 1, got {record_every}")
    history = History()
    disable = static_mode() if progress is None else not progress
    with tqdm(range(steps), desc=label, disable=disable, leave=False) as bar:
        try:
            for index in bar:
                result = step(index)
                measured = dict(result) if isinstance(result, Mapping) else {"loss": result}
                measured = {name: float(value) for name, value in measured.items()}
                finite = all(math.isfinite(value) for value in measured.values())
                if index % record_every == 0 or index == steps - 1 or not finite:
                    history.add(index, measured)
                    bar.set_postfix({name: f"{value:.3g}" for name, value in measured.items()})
                if not finite:
                    history.stopped = "diverged"
                    break
        except KeyboardInterrupt:
            history.stopped = "interrupted"
            print(f"{label}: interrupted after {len(history.steps)} recorded steps; what was recorded is kept")
    return history
