"""A head whose vocabulary is spread over processes."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lossbook._validation import check_integer, check_positive
from lossbook.kernels.cross_entropy.library import no_autocast
from lossbook.kernels.cross_entropy.problem import Problem, Statistics
from lossbook.kernels.cross_entropy.registration import once
from lossbook.kernels.cross_entropy.two_pass import backward_statistics, forward_statistics


@dataclass
class VocabParallel:
    r"""The rows ``[start, stop)`` of a classifier of :math:`V` rows that this process holds.

    Every process of ``group`` passes the same ``e``, ``target`` and options to :func:`cut_cross_entropy`, its own
    rows of ``c`` and ``bias``, and its own ``VocabParallel``.  Each gets the loss over the whole vocabulary, the whole
    gradient of ``e``, and the gradient of its own rows.  With :math:`\mathrm{lse}^{(r)}_i` the log-sum-exp over the
    rows of process :math:`r` and :math:`M_i` their maximum over processes,

    .. math:: \mathrm{lse}_i = M_i + \log \sum_r e^{\mathrm{lse}^{(r)}_i - M_i} .

    Forward, that is one maximum and one sum over the processes, of ``N`` and at most ``3 N`` numbers.  Backward, one
    sum of the gradient of ``e``, ``N * D`` numbers in the accumulation dtype.

    Args:
        start: First row held here.
        stop: One past the last row held here.
        group: Process group; None for the default group. Without an initialised ``torch.distributed`` this process
            is taken to be alone, and must hold every row.

    Returns:
        A value for the argument ``vocab_parallel`` of :func:`cut_cross_entropy`.

    Raises:
        TypeError: If ``start`` or ``stop`` is not an int.
        ValueError: If ``0 <= start < stop`` does not hold.

    Examples:
        >>> from lossbook.kernels import cut_cross_entropy
        >>> shard = VocabParallel.from_vocab(10)  # of the one process that runs this example
        >>> (shard.start, shard.stop)
        (0, 10)
        >>> e, c, target = torch.eye(2, 3), torch.eye(10, 3), torch.tensor([0, 7])
        >>> cut_cross_entropy(e, c, target, vocab_parallel=shard) == cut_cross_entropy(e, c, target)
        tensor(True)

    References:
        Wijmans et al. (2025), Cut Your Losses in Large-Vocabulary Language Models, Sec. 4.2 for the log-sum-exp that
        is split here over processes; chapter 17 (:doc:`/notebooks/17_cut_cross_entropy`).
    """

    start: int
    stop: int
    group: dist.ProcessGroup | None = None
    _vocab_size: int | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_integer("start", self.start)
        check_integer("stop", self.stop)
        if not 0 <= self.start < self.stop:
            raise ValueError(f"start and stop must satisfy 0 <= start < stop, got {self.start} and {self.stop}")

    @classmethod
    def from_vocab(cls, vocab_size: int, group: dist.ProcessGroup | None = None) -> "VocabParallel":
        """This process's share of an even split; the first ``vocab_size % world_size`` processes get one row more.

        Args:
            vocab_size: Rows of the whole classifier, at least one per process.
            group: Process group; None for the default group, or a single process if none is initialised.

        Returns:
            The shard of the calling process.

        Raises:
            TypeError: If ``vocab_size`` is not an int.
            ValueError: If a process would get no row.

        Examples:
            >>> VocabParallel.from_vocab(49152)
            VocabParallel(start=0, stop=49152, group=None)
        """
        check_integer("vocab_size", vocab_size)
        check_positive("vocab_size", vocab_size)
        rank, world = _rank_and_world(group)
        if vocab_size < world:
            raise ValueError(f"vocab_size must be at least the number of processes = {world}, got {vocab_size}")
        share, extra = divmod(vocab_size, world)
        start = rank * share + min(rank, extra)
        return cls(start, start + share + (rank < extra), group, vocab_size)

    def vocab_size(self) -> int:
        """Rows of the whole classifier; the first call asks the other processes and checks that no row is missing.

        Returns:
            The number of rows over all processes.

        Raises:
            ValueError: If the shards overlap or leave a gap.

        Examples:
            >>> VocabParallel(0, 10).vocab_size()
            10
        """
        if self._vocab_size is None:
            shards = [(self.start, self.stop)] * _rank_and_world(self.group)[1]
            if len(shards) > 1:
                dist.all_gather_object(shards, (self.start, self.stop), group=self.group)
            expected = 0
            for start, stop in sorted(shards):
                if start != expected:
                    raise ValueError(
                        f"the shards of vocab_parallel must cover the vocabulary without gap or overlap, got {shards} "
                        f"over {len(shards)} process(es)"
                    )
                expected = stop
            self._vocab_size = expected
        return self._vocab_size


def check_shard(shard: VocabParallel, rows: int, impl: str) -> None:
    """Check a shard against the rows of ``c`` and the implementation."""
    if not isinstance(shard, VocabParallel):
        raise TypeError(f"vocab_parallel must be a VocabParallel, got {type(shard).__name__}")
    if rows != shard.stop - shard.start:
        raise ValueError(
            f"c must have the rows of its shard, vocab_parallel.stop - start = {shard.stop - shard.start}, got {rows}"
        )
    if impl == "dense":
        raise ValueError("vocab_parallel must be None for impl='dense', which holds every logit; use impl='torch'")


def _localize(problem: Problem, shard: VocabParallel) -> Problem:
    """Renumber targets, and cut class weights, of the whole vocabulary to the shard."""
    class_weight = None if problem.class_weight is None else problem.class_weight[shard.start : shard.stop]
    # Targets of other shards fall outside [0, rows of c).
    return problem._replace(target=problem.target - shard.start, class_weight=class_weight)


def _rank_and_world(group: dist.ProcessGroup | None) -> tuple[int, int]:
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def parallel_statistics(problem: Problem, shard: VocabParallel) -> Statistics:
    """Statistics over the vocabulary of all processes.

    ``problem`` has this process's ``c`` and ``bias``; ``target`` and ``class_weight`` are of the whole vocabulary.
    """
    alone = _rank_and_world(shard.group)[1] == 1
    group = None if alone else shard.group or dist.group.WORLD
    problem = _localize(problem, shard)
    return Statistics(*_ParallelStatistics.apply(problem.e, problem.c, problem.bias, problem, group))


class _ParallelStatistics(torch.autograd.Function):
    """Statistics of the shards, joined; the gradient of ``e`` is summed over the processes."""

    @staticmethod
    def forward(
        ctx: Any, e: Tensor, c: Tensor, bias: Tensor | None, problem: Problem, group: dist.ProcessGroup | None
    ) -> tuple[Tensor | None, ...]:
        with no_autocast(e):
            lse, *sums = forward_statistics(problem)
        lse, *sums = _join(lse, sums, group)
        if problem.valid is not None:
            lse = lse.where(problem.valid, 0)
        ctx.save_for_backward(lse)
        ctx.problem, ctx.group = problem, group
        ctx.set_materialize_grads(False)
        return lse, *sums

    @staticmethod
    def backward(
        ctx: Any, d_lse: Tensor | None, d_target: Tensor | None, d_logit_sum: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        problem, (lse,) = ctx.problem, ctx.saved_tensors
        need_e, need_c, need_bias, *_ = ctx.needs_input_grad
        with no_autocast(problem.e), torch.no_grad():
            d_e, d_c, d_bias = backward_statistics(
                problem, lse, d_lse, d_target, d_logit_sum, need_e=need_e, need_c=need_c, need_bias=need_bias
            )
            if d_e is not None:
                if ctx.group is not None:
                    dist.all_reduce(d_e, group=ctx.group)
                d_e = d_e.to(problem.e.dtype)
        return (*once((d_e, d_c, d_bias), problem.e, problem.c, problem.bias), None, None)


def _join(lse: Tensor, sums: list[Tensor | None], group: dist.ProcessGroup | None) -> tuple[Tensor | None, ...]:
    """Combine statistics over the processes: one maximum, then one sum of everything at once."""
    if group is None:
        return lse, *sums
    top = lse.clone()
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    # Where every process has -inf (all logits masked, or an ignored row's zero) the difference must not be NaN.
    top_or_zero = top.where(top > -torch.inf, 0)
    present = [value for value in sums if value is not None]
    total = torch.stack([(lse - top_or_zero).exp(), *present])
    dist.all_reduce(total, group=group)
    joined = iter(total[1:])
    return top_or_zero + total[0].log(), *(None if value is None else next(joined) for value in sums)
