"""The tokens that attention will read."""

import torch
from torch import Tensor

from lossbook._validation import check_floating, check_shape, check_tensor
from lossbook.kernels.sparse_attention.arguments import check_lengths, check_selection
from lossbook.kernels.sparse_attention.engines import engine


@torch.no_grad()
def select_tokens(
    scores: Tensor,
    budget: int,
    lengths: Tensor | None = None,
    sink: int = 0,
    recent: int = 0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The tokens with the largest scores, exactly and repeatably, and those that are always kept.

    Tokens are ranked by score, equal ones by index, the lowest first. NaN ranks below every number and ``-inf``; zeros
    of either sign are equal. The first ``sink`` and the last ``recent`` tokens of each request rank above all others.
    Shapes are fixed and the device is not waited for, so that the call can be captured in a CUDA graph.

    Args:
        scores: Shape ``(B, H, S)``, float32 or float64; float16 and bfloat16 are taken as float32.
        budget: Tokens to select, ``>= 1``; also more than there are.
        lengths: Tokens of each request, int32 or int64, shape ``(B,)``, in ``[1, S]``. Default: ``S``. Those behind
            are never selected, whatever their scores.
        sink: Tokens at the start that are always selected. Default 0.
        recent: Tokens at the end that are always selected. Default 0. ``sink + recent`` is at most ``budget``.
        impl: As in :func:`build_labels`. Default ``"auto"``.

    Returns:
        The indices in ascending order, with -1 behind them, int32, shape ``(B, H, budget)``; and their number, the
        smaller one of budget and length, int32, shape ``(B, H)``.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape or value does not fit; lengths are looked at on the CPU always, on a GPU only with
            ``LOSSBOOK_DEBUG=1``.
        ImplementationUnavailableError: If ``impl="triton"`` cannot run here.

    Examples:
        >>> scores = torch.tensor([[[1.0, 7.0, 7.0, 9.0, 7.0, 8.0]]])
        >>> select_tokens(scores, 3)
        (tensor([[[1, 3, 5]]], dtype=torch.int32), tensor([[3]], dtype=torch.int32))
        >>> select_tokens(scores, 4, torch.tensor([3]), sink=1)
        (tensor([[[ 0,  1,  2, -1]]], dtype=torch.int32), tensor([[3]], dtype=torch.int32))

    References:
        Yang et al. (2024), Post-Training Sparse Attention with Double Sparsity, token sparsity; chapter 18
        (:doc:`/notebooks/18_double_sparsity`).
    """
    check_tensor("scores", scores)
    check_floating("scores", scores)
    check_shape("scores", scores, "(B, H, S)", (None, None, None))
    check_selection(budget, sink, recent)
    batch, _, tokens = scores.shape
    lengths = check_lengths(lengths, batch, tokens, scores.device)
    if scores.dtype.itemsize < 4:
        scores = scores.float()
    return engine(impl, "scores", scores).select_tokens(scores, budget, lengths, sink, recent)
