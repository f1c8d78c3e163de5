"""Geometry of the logit tiles, and the in-place arithmetic on them.

A tile is a block of logits, rows by columns, in one reused buffer.  A matrix product fills it; everything that
follows runs over a few rows at a time (a *strip*), so that the several passes of a softmax hit the cache and not
the memory bus.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Rows that share one decision of the gradient filter; part of the documented semantics, not a tuning knob.
FILTER_ROWS = 128

_TILE_ROWS = 512
_TILE_BYTES = 4 << 20  # stays in a last-level cache next to the operands of the product
_ROW_CHUNK_BYTES = 32 << 20  # twice as much is no faster
_STRIP_BYTES = 512 << 10  # half of a core's second-level cache
_MIN_COLUMNS = 64


def spans(stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Consecutive half-open intervals of length ``step`` that cover ``[0, stop)``."""
    return ((start, min(start + step, stop)) for start in range(0, stop, max(step, 1)))


def tile_shape(rows: int, columns: int, itemsize: int, chunk_bytes: int, *, on_cpu: bool) -> tuple[int, int]:
    """Rows and columns of a two-pass tile whose buffer stays within ``chunk_bytes``.

    Rows are a multiple of ``FILTER_ROWS``.  The smallest tile is ``FILTER_ROWS`` x 64, even when that is above
    ``chunk_bytes``.
    """
    budget = (min(chunk_bytes, _TILE_BYTES * torch.get_num_threads()) if on_cpu else chunk_bytes) // itemsize
    height = min(rows, _TILE_ROWS)
    while height > FILTER_ROWS and budget // height < _MIN_COLUMNS:
        height = max(FILTER_ROWS, height // 2 // FILTER_ROWS * FILTER_ROWS)
    width = max(_MIN_COLUMNS, budget // max(height, 1) // _MIN_COLUMNS * _MIN_COLUMNS)
    return height, min(width, columns)


def row_chunk(rows: int, columns: int, itemsize: int, chunk_bytes: int, *, on_cpu: bool) -> int:
    """Rows per chunk of whole logit rows: a multiple of ``FILTER_ROWS``, or all rows if they are fewer."""
    budget = min(chunk_bytes, max(_ROW_CHUNK_BYTES, _TILE_BYTES * torch.get_num_threads())) if on_cpu else chunk_bytes
    fitting = budget // (columns * itemsize) // FILTER_ROWS * FILTER_ROWS
    return min(rows, max(FILTER_ROWS, fitting))


def fits_row_chunk(rows: int, columns: int, itemsize: int, chunk_bytes: int) -> bool:
    """Whether the smallest row chunk respects ``chunk_bytes``."""
    return min(rows, FILTER_ROWS) * columns * itemsize <= chunk_bytes


def strips(tile: Tensor, *, within_filter_rows: bool) -> Iterator[slice]:
    """Row slices of ``tile`` that fit the cache; on request none of them straddles two filter blocks."""
    rows = tile.shape[0]
    step = rows
    if tile.device.type == "cpu":
        step = max(1, _STRIP_BYTES * torch.get_num_threads() // (tile.shape[1] * tile.element_size()))
    if within_filter_rows:
        # Powers of two up to FILTER_ROWS divide it.
        step = min(FILTER_ROWS, 1 << (step.bit_length() - 1))
    return (slice(start, stop) for start, stop in spans(rows, step))


def logits_into(buffer: Tensor, e: Tensor, c: Tensor, bias: Tensor | None, scale: float = 1.0) -> Tensor:
    """Write ``scale * (e @ c.T + bias)`` into the front of the flat ``buffer`` and return it as a matrix."""
    tile = buffer[: e.shape[0] * c.shape[0]].view(e.shape[0], c.shape[0])
    if bias is None:
        return torch.addmm(tile, e, c.T, beta=0, alpha=scale, out=tile)
    return torch.addmm(bias, e, c.T, beta=scale, alpha=scale, out=tile)


def softcap_(z: Tensor, softcap: float | None, scale: float) -> Tensor:
    """Replace ``z`` by ``scale * softcap * tanh(z / softcap)`` in place; nothing to do without a cap."""
    return z if softcap is None else z.div_(softcap).tanh_().mul_(softcap * scale)


def softcap_slope(capped: Tensor, softcap: float | None, scale: float) -> Tensor | None:
    """Derivative of the cap, without the factor ``scale``, from what :func:`softcap_` gave."""
    return None if softcap is None else (capped / (softcap * scale)).square_().neg_().add_(1)


def pick(tile: Tensor, target: Tensor) -> Tensor:
    """``tile[i, target[i]]``, and 0 where ``target[i]`` is no column of the tile."""
    inside, column = _locate(tile, target)
    return tile.gather(1, column[:, None])[:, 0].where(inside, 0)


def _locate(tile: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    columns = tile.shape[1]
    return (target >= 0) & (target < columns), target.clamp(0, columns - 1)


def softmax_and_lse_(z: Tensor) -> Tensor:
    """Turn the rows of ``z`` into their softmax in place and return their log-sum-exp.

    The largest probability of a row is ``exp(0) / sum``, so the sum need not be formed again.  A row of ``-inf``
    becomes NaN, with a log-sum-exp of ``-inf``.
    """
    top = z.amax(1)
    torch.softmax(z, 1, out=z)
    return torch.where(top == -torch.inf, top, top - z.amax(1).log())


def joined_entropy(lse: Tensor, *parts: tuple[Tensor, Tensor]) -> Tensor:
    """Entropy of a softmax from the log-sum-exp and the entropy of each part of its columns.

    A part of ``-inf`` alone counts for nothing, whatever its entropy is said to be; so does a whole row of it.
    """
    lse = lse.where(lse != -torch.inf, 0)
    total = torch.zeros_like(lse)
    for part_lse, part_entropy in parts:
        share = (part_lse - lse).exp()
        total += torch.special.entr(share) + (share * part_entropy).where(part_lse != -torch.inf, 0)
    return total


def softmax_to_gradient_(
    softmax: Tensor,
    slope: Tensor | None,
    d_lse: Tensor,
    target: Tensor | None,
    d_target: Tensor | None,
    class_weight: Tensor | None,
    d_logit_sum: Tensor | None,
    entropy: Tensor | None = None,
    d_mean: Tensor | None = None,
) -> None:
    """Turn softmax rows, in place, into the gradient by the uncapped logits.

    The differentiated scalar is
    ``sum(d_lse * lse + d_target * target_logit + d_logit_sum * logit_sum + d_mean * mean_logit)``.

    Args:
        softmax: Softmax probabilities, shape ``(n, v)``; overwritten.
        slope: Derivative of the softcap, shape ``(n, v)``, or None.
        d_lse: Shape ``(n,)``.
        target: Column of the target logit, shape ``(n,)``; out of ``[0, v)`` where the row has none here.
        d_target: Shape ``(n,)``, or None.
        class_weight: Weights of the logit sum, shape ``(v,)``, or None if it is handled elsewhere.
        d_logit_sum: Shape ``(n,)``, or None.
        entropy: Entropy of the softmax over all columns, shape ``(n,)``; needed with ``d_mean`` only.
        d_mean: Shape ``(n,)``, or None.
    """
    if d_mean is None:
        softmax.mul_(d_lse[:, None])
    else:
        # p (1 + z - mean) = p (1 + entropy) - entr(p), and entr is 0 at p = 0, where z may be -inf.
        spread = torch.special.entr(softmax).mul_(d_mean[:, None])
        softmax.mul_((d_lse + d_mean * (1 + entropy))[:, None]).sub_(spread)
    if d_target is not None:
        inside, column = _locate(softmax, target)
        softmax.scatter_add_(1, column[:, None], d_target.where(inside, 0)[:, None])
    if class_weight is not None and d_logit_sum is not None:
        softmax.addr_(d_logit_sum, class_weight)
    if slope is not None:
        softmax.mul_(slope)
