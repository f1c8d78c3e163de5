"""Matrix products of the library, into results wider than their operands."""

import torch
from torch import Tensor

# ROCm has no product with a result wider than its operands.
_WIDENS = torch.version.hip is None


def product(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    """``a @ b`` into ``out``, summed in float32 and rounded once to its dtype."""
    if out.dtype == a.dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda and _WIDENS:
        return torch.mm(a, b, out.dtype, out=out)
    return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``total += a @ b``, in the dtype of ``total``."""
    if total.dtype == a.dtype:
        return total.addmm_(a, b)
    if a.is_cuda and _WIDENS:
        return torch.addmm(total, a, b, total.dtype, out=total)
    return total.addmm_(a.to(total.dtype), b.to(total.dtype))
