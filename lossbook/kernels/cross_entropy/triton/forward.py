"""The forward pass: statistics of every row, and the column map if a filter will want it."""

import math

import torch
from torch import Tensor

from lossbook.kernels.cross_entropy.problem import Problem, Statistics, put
from lossbook.kernels.cross_entropy.tiles import joined_entropy
from lossbook.kernels.cross_entropy.triton import config
from lossbook.kernels.cross_entropy.triton.column_map import mark_targets_kernel
from lossbook.kernels.cross_entropy.triton.operands import Operands
from lossbook.kernels.cross_entropy.triton.statistics import statistics_kernel, target_logit_kernel

# The map is taken from logits that were summed up in another order than the backward pass does it; a candidate too
# many costs a column's work, one too few would change the gradient.
_SLACK = 0.01


def filter_levels(problem: Problem) -> list[float]:
    """Thresholds to record, ascending: of all that either gradient keeps, then of the classifier's if fewer.

    The second map only decides which columns are computed together.
    """
    eps = [value for value in (problem.eps_e, problem.eps_c) if value is not None]
    if not eps:
        return []
    levels = [min(eps)]
    if problem.eps_c is not None and problem.eps_c > levels[0]:
        levels.append(problem.eps_c)
    return levels


def empty_column_map(problem: Problem) -> Tensor | None:
    """Room for one bit per column and block of rows and threshold, 32 of them to a word."""
    levels = filter_levels(problem)
    if not levels:
        return None
    blocks, words = -(-problem.e.shape[0] // config.BLOCK_ROWS), -(-problem.size // 32)
    return problem.e.new_empty((len(levels), blocks, words), dtype=torch.int32)


def forward_statistics(problem: Problem) -> Statistics:
    """The statistics that ``problem`` asks for."""
    operands = Operands.of(problem)
    column_map = empty_column_map(problem)
    if column_map is not None:
        # Blocks of rows that do not count.
        column_map[:, operands.blocks :].zero_()
    if operands.count == 0:
        return _nothing(problem, column_map)
    target_logit = None if operands.target is None else _target_logit(operands)
    lse, mean_logit, logit_sum, argmax = _sweep(operands, target_logit, column_map)
    if column_map is not None:
        _keep_all_of_broken_(column_map, lse)
    if column_map is not None and operands.target is not None:
        mark_targets_kernel[(operands.blocks,)](
            column_map,
            operands.target,
            operands.count,
            operands.size,
            column_map.stride(1),
            column_map.stride(0),
            N_MAPS=len(column_map),
            BLOCK_ROWS=config.BLOCK_ROWS,
        )
    if operands.linear_sum is not None:
        logit_sum = operands.linear_sum.forward(operands.e)
    values = (lse, target_logit, logit_sum, mean_logit, argmax)
    return Statistics(*(put(value, operands.rows, len(problem.e)) for value in values), column_map)


def _keep_all_of_broken_(column_map: Tensor, lse: Tensor) -> None:
    """Set every bit of the blocks that hold a NaN: the kernel's maximum over the rows passes over it."""
    padded = torch.nn.functional.pad(lse.isnan(), (0, -len(lse) % config.BLOCK_ROWS))
    broken = padded.unflatten(0, (-1, config.BLOCK_ROWS)).any(1)
    column_map[:, : len(broken)].masked_fill_(broken[None, :, None], -1)


def _nothing(problem: Problem, column_map: Tensor | None) -> Statistics:
    zeros = problem.e.new_zeros(len(problem.e), dtype=torch.float32)
    return Statistics(
        zeros,
        None if problem.target is None else zeros.clone(),
        None if problem.class_weight is None else zeros.clone(),
        zeros.clone() if problem.want_mean else None,
        zeros.to(torch.int64) if problem.want_argmax else None,
        column_map,
    )


def _target_logit(operands: Operands) -> Tensor:
    result = operands.new(operands.count)
    target_logit_kernel[(-(-operands.count // config.TARGET_ROWS),)](
        **operands.arguments(),
        target=operands.target,
        target_logit=result,
        n_columns=operands.size,
        BLOCK_ROWS=config.TARGET_ROWS,
        BLOCK_FEATURES=config.TARGET_FEATURES,
        num_warps=config.TARGET_WARPS,
    )
    return result


def _sweep(
    operands: Operands, target_logit: Tensor | None, column_map: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """One pass over the vocabulary: log-sum-exp, mean logit, capped logit sum, argmax; fills the map."""
    problem, e, c = operands.problem, operands.e, operands.c
    splits = config.n_splits(e.device, operands.blocks, operands.size)

    def parts(wanted: bool, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return operands.new(splits, operands.count, dtype=dtype) if wanted else None

    class_weight = problem.capped_weight(0, problem.size)
    lse, entropy, logit_sum = parts(True), parts(problem.want_mean), parts(class_weight is not None)
    top, argmax = parts(problem.want_argmax), parts(problem.want_argmax, torch.int32)
    levels = [math.log2(eps) - _SLACK for eps in filter_levels(problem)] + [None, None]
    table = config.table(config.architecture(e.device), e.dtype)
    described = config.use_descriptors(table, e, c)
    configs = table.described_statistics if described else table.statistics
    if entropy is not None or argmax is not None or class_weight is not None:
        configs = table.statistics_with_extras
    arguments = operands.arguments()
    if described:
        arguments |= {"e": config.descriptor(e), "c": config.descriptor(c)}
    arguments |= {
        "target": operands.target,
        "target_logit": target_logit,
        "class_weight": class_weight,
        "lse_parts": lse,
        "entropy_parts": entropy,
        "sum_parts": logit_sum,
        "top_parts": top,
        "argmax_parts": argmax,
        "column_map": column_map,
        "n_columns": operands.size,
        "n_words": 0 if column_map is None else column_map.stride(1),
        "map_stride": 0 if column_map is None else column_map.stride(0),
        "level": levels[0],
        "order_level": levels[1],
        "N_SPLITS": splits,
        "BLOCK_ROWS": config.BLOCK_ROWS,
        "DESCRIPTORS": described,
        "PRECISION": operands.precision,
    }
    config.launch(
        statistics_kernel,
        configs,
        ("BLOCK_COLUMNS", "BLOCK_FEATURES", "WARP_SPECIALIZE"),
        lambda meta: (operands.blocks * splits,),
        arguments,
    )
    return _joined(lse, entropy, logit_sum, top, argmax)


def _joined(
    lse_parts: Tensor, entropy_parts: Tensor | None, sum_parts: Tensor | None, top: Tensor | None, argmax: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Statistics over the whole vocabulary from those of its shares, the first dimension."""
    lse, mean, column = lse_parts.logsumexp(0), None, None
    if entropy_parts is not None:
        mean = lse - joined_entropy(lse, *zip(lse_parts, entropy_parts, strict=True))
    if argmax is not None:
        # The negation keeps NaN, so that some share always has the index.
        first = argmax.where(~(top < top.amax(0)), torch.iinfo(torch.int32).max)
        column = first.amin(0).to(torch.int64)
    return lse, mean, None if sum_parts is None else sum_parts.sum(0), column
