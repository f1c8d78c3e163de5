"""Streams of tasks, and the small memory that a learner keeps of them."""

from __future__ import annotations

import torch
from torch import Tensor

from lossbook._validation import check_dtype, check_integer, check_non_negative, check_shape, check_tensor


def class_incremental(x: Tensor, y: Tensor, *, num_tasks: int, seed: int) -> list[Tensor]:
    """Split examples into tasks that have no class in common, to be learned one after the other.

    Args:
        x: Examples, shape ``(N, ...)``; only their number counts.
        y: Classes, shape ``(N,)``, int64; any numbers.
        num_tasks: Number of tasks, from 1 to the number of classes.
        seed: Seed of the order of classes and of examples, ``>= 0``. Global random states stay as they are.

    Returns:
        For each task the indices of its examples, int64, in random order. Together they hold every example once. The
        tasks have equally many classes, or the first ones one more.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, ``num_tasks`` or ``seed`` is not as above.

    Examples:
        >>> x, y = torch.arange(12.0), torch.arange(12) % 4
        >>> tasks = class_incremental(x, y, num_tasks=2, seed=0)
        >>> [sorted(set(y[task].tolist())) for task in tasks]
        [[0, 1], [2, 3]]

    References:
        The streams of chapter 11 (:doc:`/notebooks/11_contrastive_replay`).
    """
    check_tensor("x", x)
    check_tensor("y", y)
    check_dtype("y", y, torch.int64)
    check_shape("y", y, "(N,)", (None,))
    if x.ndim == 0 or len(x) != len(y):
        raise ValueError(f"x must have shape (N, ...) = ({len(y)}, ...), got {tuple(x.shape)}")
    check_integer("num_tasks", num_tasks)
    classes = y.unique().cpu()
    if not 1 <= num_tasks <= len(classes):
        raise ValueError(f"num_tasks must lie in [1, number of classes] = [1, {len(classes)}], got {num_tasks}")
    generator = _seeded(seed)
    groups = classes[torch.randperm(len(classes), generator=generator)].tensor_split(num_tasks)
    members = [torch.isin(y.cpu(), group).nonzero()[:, 0] for group in groups]
    return [each[torch.randperm(len(each), generator=generator)].to(y.device) for each in members]


class ReservoirBuffer:
    r"""A memory of fixed size in which every example of a stream stays with the same probability.

    After :math:`n` examples each of them is held with probability :math:`\min(1, K / n)`, for a capacity of :math:`K`:
    the :math:`n`-th is drawn a place from 1 to :math:`n`, and overwrites what stands there if the memory has that
    place. Nothing about the stream need be known, such as its length or where tasks begin.

    Args:
        capacity: Number of examples :math:`K` it can hold, ``>= 1``.
        seed: Seed of all draws, ``>= 0``. Default 0. Global random states stay as they are.

    Raises:
        TypeError: If an argument is no int.
        ValueError: If ``capacity`` is below 1 or ``seed`` negative.

    Examples:
        >>> buffer = ReservoirBuffer(50)
        >>> buffer.add(x=torch.randn(200, 8), y=torch.arange(200) % 10)
        >>> len(buffer), buffer.sample(10)["x"].shape
        (50, torch.Size([10, 8]))

    References:
        Vitter (1985), algorithm R; the memory of chapter 11 (:doc:`/notebooks/11_contrastive_replay`).
    """

    def __init__(self, capacity: int, *, seed: int = 0) -> None:
        check_integer("capacity", capacity)
        if capacity < 1:
            raise ValueError(f"capacity must be >= 1, got {capacity}")
        self.capacity = capacity
        self._generator = _seeded(seed)
        self._seen = 0
        self._fields: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self._seen, self.capacity)

    def add(self, **tensors: Tensor) -> None:
        """Offer the next examples of the stream, of which some are kept.

        Args:
            **tensors: What to store of each example, such as its features, class and logits: shape ``(B, ...)`` each.
                Copied without a gradient. Every call must have the names, the other sizes and the dtypes of the first.

        Returns:
            None.

        Raises:
            TypeError: If one is no tensor or has another dtype than before.
            ValueError: If there is none, their numbers of examples differ, or a name or shape is not as before.
        """
        count = self._check(tensors)
        if not self._fields:
            self._fields = {name: x.new_empty(self.capacity, *x.shape[1:]) for name, x in tensors.items()}
        order = torch.arange(self._seen, self._seen + count)
        drawn = torch.rand(count, generator=self._generator, dtype=torch.float64)
        places = torch.where(order < self.capacity, order, (drawn * (order + 1)).long())
        # Of several examples drawn to one place the last stays, as if they had come one by one.
        kept = {place: row for row, place in enumerate(places.tolist()) if place < self.capacity}
        into, rows = torch.tensor(list(kept)).long(), torch.tensor(list(kept.values())).long()
        for name, x in tensors.items():
            stored = self._fields[name]
            stored[into.to(stored.device)] = x.detach()[rows.to(x.device)].to(stored.device)
        self._seen += count

    def sample(self, n: int) -> dict[str, Tensor]:
        """Draw examples at random, none twice.

        Args:
            n: Number of examples, ``>= 1``.

        Returns:
            A copy of each stored tensor's rows, shape ``(min(n, len(buffer)), ...)``, by name; the same examples in the
            same order in all of them.

        Raises:
            TypeError: If ``n`` is no int.
            ValueError: If ``n`` is below 1, or nothing has been stored.
        """
        check_integer("n", n)
        if n < 1:
            raise ValueError(f"n must be >= 1, got {n}")
        if len(self) == 0:
            raise ValueError("the buffer must hold an example to sample from, got an empty one")
        rows = torch.randperm(len(self), generator=self._generator)[:n]
        return {name: stored[rows.to(stored.device)] for name, stored in self._fields.items()}

    def _check(self, tensors: dict[str, Tensor]) -> int:
        """Number of examples, after all tensors have been found to have it and to fit what is stored."""
        if not tensors:
            raise ValueError("tensors must name at least one tensor, got none")
        if self._fields and tensors.keys() != self._fields.keys():
            raise ValueError(f"tensors must be named {', '.join(self._fields)} as before, got {', '.join(tensors)}")
        count = None
        for name, x in tensors.items():
            check_tensor(name, x)
            if x.ndim == 0:
                raise ValueError(f"{name} must have shape (B, ...), got ()")
            count = len(x) if count is None else count
            stored = self._fields.get(name, x)
            check_dtype(name, x, stored.dtype)
            check_shape(name, x, "(B, ...)", (count, *stored.shape[1:]))
        return count


def _seeded(seed: int) -> torch.Generator:
    """A generator of its own for ``seed``.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is negative.
    """
    check_integer("seed", seed)
    check_non_negative("seed", seed)
    return torch.Generator().manual_seed(seed)
