"""The public function."""

import torch
from torch import Tensor

from lossbook._validation import check_target_range
from lossbook.kernels.cross_entropy.arguments import (
    autocast_operands,
    check_class_weight,
    check_head,
    check_options,
    check_target,
    filter_thresholds,
    shift_pairs,
)
from lossbook.kernels.cross_entropy.library import work_dtype
from lossbook.kernels.cross_entropy.loss import linear_loss
from lossbook.kernels.cross_entropy.parallel import VocabParallel
from lossbook.kernels.cross_entropy.problem import Problem


def cut_cross_entropy(
    e: Tensor,
    c: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    softcap: float | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    weight: Tensor | None = None,
    shift: int = 0,
    return_lse: bool = False,
    filter_eps: float | str | tuple[float | None, float | None] | None = None,
    filter_e: bool = True,
    filter_c: bool = True,
    accum_dtype: torch.dtype = torch.float32,
    impl: str = "auto",
    chunk_bytes: int = 64 << 20,
    vocab_parallel: VocabParallel | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """DOC."""
    check_options(
        ignore_index=ignore_index,
        softcap=softcap,
        reduction=reduction,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        shift=shift,
        accum_dtype=accum_dtype,
        impl=impl,
        chunk_bytes=chunk_bytes,
    )
    eps_e, eps_c = filter_thresholds(filter_eps, filter_e, filter_c)
    check_head(e, c, bias)
    check_target("target", target, e)
    size = c.shape[0]
    if vocab_parallel is not None:
        vocab_parallel.check(size, impl)
        size = vocab_parallel.vocab_size()
    check_class_weight(weight, size, e)
    check_target_range("target", target, size, symbol="V", ignore_index=ignore_index)

    e, target = shift_pairs(e, target, shift)
    e, c, bias = autocast_operands(e, c, bias)
    flat = target.reshape(-1)
    problem = Problem(
        e.reshape(-1, e.shape[-1]),
        c,
        bias,
        flat,
        flat != ignore_index,
        None,
        softcap,
        eps_e,
        eps_c,
        work_dtype(e.dtype, accum_dtype),
        chunk_bytes,
    )
    loss, lse = linear_loss(
        problem,
        weight,
        vocab_parallel,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        reduction=reduction,
        impl="dense" if impl == "dense" else "torch",
        want_lse=return_lse,
    )
    if reduction == "none":
        loss = loss.reshape(target.shape)
    return (loss, lse.reshape(target.shape)) if return_lse else loss
