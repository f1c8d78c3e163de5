"""A head whose vocabulary is spread over processes."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lossbook._validation import check_integer, check_positive
from lossbook.kernels.cross_entropy.engines import engine
from lossbook.kernels.cross_entropy.library import no_autocast
from lossbook.kernels.cross_entropy.logsumexp import gathered_dot
from lossbook.kernels.cross_entropy.problem import Problem, Saved, Statistics, take
from lossbook.kernels.cross_entropy.registration import once
from lossbook.kernels.cross_entropy.tiles import softcap_


@dataclass
class VocabParallel:
    r"""The rows ``[start, stop)`` of a classifier of :math:`V` rows that this process holds.

    Every process of ``group`` passes the same ``e``, ``target`` and options to :func:`cut_cross_entropy`, its own
    rows of ``c`` and ``bias``, and its own ``VocabParallel``.  Each gets the loss over the whole vocabulary, the whole
    gradient of ``e``, and the gradient of its own rows.  With :math:`\mathrm{lse}^{(r)}_i` the log-sum-exp over the
    rows of process :math:`r` and :math:`M_i` their maximum over processes,

    .. math:: \mathrm{lse}_i = M_i + \log \sum_r e^{\mathrm{lse}^{(r)}_i - M_i} .

    Forward, that is one maximum and one sum over the processes, of ``N`` and at most ``4 N`` numbers; the argmax adds
    ``N`` numbers to the maximum, and one minimum of ``N``.  Backward, one sum of the gradient of ``e``, ``N * D``
    numbers in the accumulation dtype.

    Args:
        start: First row held here.
        stop: One past the last row held here.
        group: Process group; None for the default group. Without an initialised ``torch.distributed`` this process
            is taken to be alone, and must hold every row.
        reduce_e_grad: Whether to sum the gradient of ``e`` over the processes. Default True; with False each process
            keeps its partial sum, for a framework that adds them up itself, as with sequence parallelism.

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
    reduce_e_grad: bool = True
    _vocab_size: int | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_integer("start", self.start)
        check_integer("stop", self.stop)
        if not 0 <= self.start < self.stop:
            raise ValueError(f"start and stop must satisfy 0 <= start < stop, got {self.start} and {self.stop}")

    @classmethod
    def from_vocab(
        cls, vocab_size: int, group: dist.ProcessGroup | None = None, reduce_e_grad: bool = True
    ) -> "VocabParallel":
        """This process's share of an even split; the first ``vocab_size % world_size`` processes get one row more.

        Args:
            vocab_size: Rows of the whole classifier, at least one per process.
            group: Process group; None for the default group, or a single process if none is initialised.
            reduce_e_grad: Whether to sum the gradient of ``e`` over the processes. Default True.

        Returns:
            The shard of the calling process.

        Raises:
            TypeError: If ``vocab_size`` is not an int.
            ValueError: If a process would get no row.

        Examples:
            >>> VocabParallel.from_vocab(49152)
            VocabParallel(start=0, stop=49152, group=None, reduce_e_grad=True)
        """
        check_integer("vocab_size", vocab_size)
        check_positive("vocab_size", vocab_size)
        rank, world = _rank_and_world(group)
        if vocab_size < world:
            raise ValueError(f"vocab_size must be at least the number of processes = {world}, got {vocab_size}")
        share, extra = divmod(vocab_size, world)
        start = rank * share + min(rank, extra)
        return cls(start, start + share + (rank < extra), group, reduce_e_grad, vocab_size)

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
        raise ValueError("vocab_parallel must be None for impl='dense', which holds every logit; use impl='auto'")


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
    results = _ParallelStatistics.apply(problem.e, problem.c, problem.bias, problem, shard, group)
    return Statistics(*results, None)


class _ParallelStatistics(torch.autograd.Function):
    """Statistics of the shards, joined; the gradient of ``e`` is summed over the processes unless told otherwise."""

    @staticmethod
    def forward(
        ctx: Any,
        e: Tensor,
        c: Tensor,
        bias: Tensor | None,
        problem: Problem,
        shard: VocabParallel,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor | None, ...]:
        with no_autocast(e):
            local = engine(problem.impl).forward_statistics(problem)
            joined = local if group is None else _join(problem, local, shard, group)
        lse, target_logit, logit_sum, mean_logit, argmax = (
            value if value is None or problem.valid is None else value.where(problem.valid, 0) for value in joined[:-1]
        )
        # The map of columns stays this process's own.
        ctx.save_for_backward(*Saved(lse, mean_logit, local.column_map))
        ctx.problem, ctx.group = problem, group if shard.reduce_e_grad else None
        if argmax is not None:
            ctx.mark_non_differentiable(argmax)
        ctx.set_materialize_grads(False)
        return lse, target_logit, logit_sum, mean_logit, argmax

    @staticmethod
    def backward(
        ctx: Any,
        d_lse: Tensor | None,
        d_target: Tensor | None,
        d_logit_sum: Tensor | None,
        d_mean: Tensor | None,
        unused: None,
    ) -> tuple[Tensor | None, ...]:
        problem, saved = ctx.problem, Saved(*ctx.saved_tensors)
        need_e, need_c, need_bias, *_ = ctx.needs_input_grad
        with no_autocast(problem.e), torch.no_grad():
            d_e, d_c, d_bias = engine(problem.impl).backward_statistics(
                problem, saved, d_lse, d_target, d_logit_sum, d_mean, need_e=need_e, need_c=need_c, need_bias=need_bias
            )
            if d_e is not None:
                if ctx.group is not None:
                    dist.all_reduce(d_e, group=ctx.group)
                d_e = d_e.to(problem.e.dtype)
        return (*once((d_e, d_c, d_bias), problem.e, problem.c, problem.bias), None, None, None)


def _join(problem: Problem, local: Statistics, shard: VocabParallel, group: dist.ProcessGroup) -> Statistics:
    """Combine statistics over the processes: one maximum, then one sum of everything at once.

    The argmax joins the maximum with the largest logit, and takes one minimum, of its index, besides.
    """
    largest = None if local.argmax is None else _largest_logit(problem, local.argmax)
    top = torch.stack([local.lse] if largest is None else [local.lse, largest])
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    # Where every process has -inf (all logits masked) the difference must not be NaN.
    top_lse = top[0].where(top[0] != -torch.inf, 0)
    share = (local.lse - top_lse).exp()
    mean = local.mean_logit
    terms = {
        "share": share,
        "target_logit": local.target_logit,
        "logit_sum": local.logit_sum,
        # Both factors are non-negative, and so is the entropy then; a part of -inf alone has no share.
        "entropy": None if mean is None else (share * (top_lse - mean)).where(local.lse != -torch.inf, 0),
    }
    terms = {name: value for name, value in terms.items() if value is not None}
    total = torch.stack([*terms.values()])
    dist.all_reduce(total, group=group)
    total = dict(zip(terms, total, strict=True))
    log_share = total["share"].log()
    lse = top_lse + log_share
    return Statistics(
        lse,
        total.get("target_logit"),
        total.get("logit_sum"),
        None if mean is None else lse - (log_share + total["entropy"] / total["share"]),
        None if largest is None else _first_of_largest(local.argmax + shard.start, largest, top[1], group),
        None,
    )


def _largest_logit(problem: Problem, argmax: Tensor) -> Tensor:
    """Logits at ``argmax``, alike on all processes where the entries are, so that ties between shards are seen."""
    largest = gathered_dot(problem.e, problem.c, argmax, problem.work)
    if problem.bias is not None:
        largest += take(problem.bias, argmax)
    return softcap_(largest, problem.softcap, problem.scale)


def _first_of_largest(index: Tensor, largest: Tensor, top: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The lowest ``index`` among the processes that have the largest logit."""
    # The negation keeps NaN, so that some process always has the index.
    first = index.where(~(largest < top), torch.iinfo(index.dtype).max)
    dist.all_reduce(first, op=dist.ReduceOp.MIN, group=group)
    return first
