"""Scores of all tokens from their labels."""

import torch
from torch import Tensor

from lossbook._validation import check_choice, check_same_device, check_shape, check_tensor, values_are_readable
from lossbook.kernels.sparse_attention.arguments import GROUP_REDUCTIONS, check_group, check_query
from lossbook.kernels.sparse_attention.engines import engine
from lossbook.kernels.sparse_attention.labels import LabelCache


@torch.no_grad()
def approx_scores(
    q: Tensor,
    labels: LabelCache,
    channels: Tensor | None = None,
    group_reduce: str = "max",
    impl: str = "auto",
) -> Tensor:
    r"""Scores of every cached token by its label: what ranks the tokens, and nothing else.

    The query head :math:`g` with channels :math:`C` scores token :math:`t`, whose label is :math:`L_t`, by the dot
    product :math:`p_{gt}`; where the :math:`G` query heads of a group share labels, their scores become one:

    .. math::

        p_{gt} = \sum_{c \in C} q_{gc} L_{tc} , \qquad
        \mathrm{max}_t = \max_g p_{gt} , \qquad
        \mathrm{mean}_t = \frac{1}{G} \sum_g p_{gt} , \qquad
        \mathrm{maxnorm}_t = \max_g \frac{p_{gt}}{\lVert q_{gC} \rVert} , \qquad
        \mathrm{sumsoftmax}_t = \sum_g \frac{e^{p_{gt} / \sqrt{D}}}{\sum_{t'} e^{p_{gt'} / \sqrt{D}}} .

    Integer labels are not expanded: :math:`p = s\,(q \cdot u) + z \sum_c q_c` with the step and zero of each token.

    Args:
        q: Queries after the rotary embedding, one token per request, shape ``(B, Hq, D)``; float16, bfloat16, float32
            or float64.
        labels: Labels of ``H`` heads, which divides ``Hq``.
        channels: The channels of ``labels``, to be checked against them. Default None: not checked.
        group_reduce: How the query heads of a group become one: ``"max"`` (default), ``"mean"``, ``"maxnorm"`` or
            ``"sumsoftmax"``, as above; a query of zero norm scores 0. Without effect where every query head has labels
            of its own.
        impl: As in :func:`build_labels`. Default ``"auto"``.

    Returns:
        Scores, shape ``(B, H, capacity)``, ``-inf`` from each request's length on; float32, or float64 for float64
        queries. Not scaled by the root of the head size.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape or device does not fit, ``group_reduce`` is unknown, or ``channels`` are others than
            those of ``labels``; values are compared on the CPU always, on a GPU only with ``LOSSBOOK_DEBUG=1``.
        ImplementationUnavailableError: If ``impl="triton"`` cannot run here.

    Examples:
        >>> from lossbook.kernels import build_labels
        >>> k = torch.tensor([[1.0, 5.0, 2.0], [3.0, 7.0, 4.0]])[None, None]
        >>> labels = build_labels(k, torch.tensor([[2, 0]]), capacity=3)
        >>> approx_scores(torch.tensor([[[1.0, 100.0, 10.0], [-1.0, 0.0, 0.0]]]), labels)
        tensor([[[21., 43., -inf]]])

    References:
        Yang et al. (2024), Post-Training Sparse Attention with Double Sparsity, token selection by label cache; the
        group reductions are this package's own. Chapter 18 (:doc:`/notebooks/18_double_sparsity`).
    """
    check_choice("group_reduce", group_reduce, GROUP_REDUCTIONS)
    check_query(q)
    check_labels(labels, q)
    if channels is not None:
        check_tensor("channels", channels)
        check_shape("channels", channels, "labels.channels.shape", labels.channels.shape)
        check_same_device("channels", channels, "labels", labels.channels)
        if values_are_readable(channels) and not torch.equal(channels, labels.channels):
            raise ValueError("channels must be those the labels were built with, got others")
    return engine(impl, "q", q).approx_scores(q, labels, group_reduce, q.shape[2])


def check_labels(labels: LabelCache, q: Tensor) -> None:
    """Check labels against queries."""
    if not isinstance(labels, LabelCache):
        raise TypeError(f"labels must be a LabelCache, got {type(labels).__name__}")
    heads = q.shape[1]
    check_shape("q", q, "(B, Hq, D) of the labels", (labels.lengths.shape[0], heads, labels.head_dim))
    check_group("Hq", heads, labels.key_heads)
    if labels.channels.shape[0] not in (labels.key_heads, heads):
        raise ValueError(
            f"labels must have Hkv = {labels.key_heads} or Hq = {heads} heads, got {labels.channels.shape[0]}"
        )
    check_same_device("labels", labels.values, "q", q)
