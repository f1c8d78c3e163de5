"""What the kernels share: how a tile of products becomes logits, and the units it is kept in.

On a GPU the exponential in base 2 is one instruction.  The kernels therefore hold logits in units of ``log 2``, that
is multiplied by ``log2(e)``; log-sum-exps change units where they leave a kernel.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

# Whether tiles of features need no mask, as a heuristic of a kernel.
EVEN = {"EVEN": lambda arguments: arguments["n_features"] % arguments["BLOCK_FEATURES"] == 0}


@triton.jit
def capped(z, softcap):
    """``softcap * tanh(z / softcap)``, safe at any magnitude; ``z`` itself where ``softcap`` is None."""
    if softcap is not None:
        decay = tl.exp2(tl.abs(z) * (-2 * LOG2_E / softcap))
        z = softcap * tl.where(z < 0, -1.0, 1.0) * (1 - decay) / (1 + decay)
    return z


@triton.jit
def slope_of_cap(capped_z, softcap):
    """Derivative of :func:`capped`, from its value."""
    ratio = capped_z / softcap
    return 1 - ratio * ratio


@triton.jit
def block_of_rows(matrix, rows, columns, stride, n_columns, EVEN: tl.constexpr):
    """Entries ``rows x columns`` of a row-major matrix; zero past the last column."""
    pointers = matrix + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    if EVEN:
        values = tl.load(pointers)
    else:
        values = tl.load(pointers, mask=columns[None, :] < n_columns, other=0.0)
    return values
