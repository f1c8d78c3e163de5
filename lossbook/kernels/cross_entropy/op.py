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
    resolve_impl,
    shift_pairs,
)
from lossbook.kernels.cross_entropy.library import work_dtype
from lossbook.kernels.cross_entropy.loss import linear_loss
from lossbook.kernels.cross_entropy.parallel import VocabParallel, check_shard
from lossbook.kernels.cross_entropy.problem import Problem


def cut_cross_entropy(
    e: Tensor,
    c: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    weight: Tensor | None = None,
    shift: int = 0,
    return_lse: bool = False,
    return_entropy: bool = False,
    return_argmax: bool = False,
    filter_eps: float | str | tuple[float | None, float | None] | None = None,
    filter_e: bool = True,
    filter_c: bool = True,
    accum_dtype: torch.dtype = torch.float32,
    impl: str = "auto",
    chunk_bytes: int = 64 << 20,
    vocab_parallel: VocabParallel | None = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""Cross-entropy of a linear head, without ever holding the ``N x V`` matrix of its logits.

    Row :math:`i` has hidden state :math:`e_i` and target :math:`x_i`; the classifier has rows :math:`c_v` and biases
    :math:`b_v`. With softcap :math:`s`, temperature :math:`\tau`, label smoothing :math:`\alpha`, class weights
    :math:`w` (1 if not given) and z-loss factor :math:`\zeta`, a row that is not ignored costs :math:`\ell_i` and has
    entropy :math:`H_i`, both in nats:

    .. math::

        z_{iv} &= \frac{s}{\tau} \tanh\!\big((e_i \cdot c_v + b_v) / s\big), \qquad
        \mathrm{lse}_i = \log \sum_{v=1}^{V} e^{z_{iv}}, \\
        \ell_i &= (1 - \alpha)\, w_{x_i} (\mathrm{lse}_i - z_{i x_i})
        + \frac{\alpha}{V} \sum_{v=1}^{V} w_v (\mathrm{lse}_i - z_{iv})
        + \zeta\, \mathrm{lse}_i^2 , \\
        H_i &= -\sum_{v=1}^{V} p_{iv} \log p_{iv} , \qquad p_{iv} = e^{z_{iv} - \mathrm{lse}_i} .

    Without a softcap :math:`z_{iv} = (e_i \cdot c_v + b_v) / \tau`. ``"sum"`` adds the :math:`\ell_i` up, ``"mean"``
    divides that by :math:`\sum_i w_{x_i}` over the rows not ignored, which is their number when there are no weights.
    With ``z_loss=0`` this is ``torch.nn.functional.cross_entropy((e @ c.T + bias) / temperature, target, ...)``.

    Args:
        e: Hidden states, shape ``(..., D)``, floating point; any strides.
        c: Classifier, one row per vocabulary entry, shape ``(V, D)``, dtype and device of ``e``.
        target: Class indices in ``[0, V)`` or ``ignore_index``, shape ``(...)``, int64.
        bias: Added to the logits, shape ``(V,)``, dtype of ``e``. Default None.
        ignore_index: Target of rows that do not count: loss, log-sum-exp, entropy and gradients are zero there,
            whatever ``e`` holds. They are dropped before any work is done. Default -100.
        softcap: Bound :math:`s > 0` on the magnitude of the logits (dimensionless), before the temperature divides
            them. Default None: no bound.
        temperature: :math:`\tau > 0`, finite (dimensionless): divides the logits, in the precision they are computed
            in. Loss, log-sum-exp and entropy are of the logits so divided. Default 1.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. Default ``"mean"``.
        label_smoothing: Mass :math:`\alpha` in ``[0, 1)`` spread evenly over the vocabulary. Default 0.
        z_loss: Factor :math:`\zeta \ge 0` of the squared log-sum-exp. Default 0.
        weight: Class weights :math:`w`, shape ``(V,)``, also under ``vocab_parallel``; no gradient. Default None.
        shift: Pairs ``e[..., t, :]`` with ``target[..., t + shift]`` along the last axis of ``target``, in
            ``[0, sequence length)``. Default 0; 1 is next-token prediction.
        return_lse: Whether to return :math:`\mathrm{lse}` too; gradients flow through it. Default False.
        return_entropy: Whether to return the entropy :math:`H` too; gradients flow through it. Default False.
        return_argmax: Whether to return the index of the largest logit too, the lowest where several are equal, int64,
            -1 at ignored rows; it has no gradient. Default False.
        filter_eps: Threshold of the gradient filter. None (default) is exact; a number serves both gradients; a pair is
            ``(eps_e, eps_c)``; ``"auto"`` is ``(2**-18, 2**-15)``, an error of about one rounding to bfloat16
            (0.15 % of the gradient's norm on a small language model); ``"fast"`` is ``(2**-16, 2**-14)``, about 0.4 %.
        filter_e: Whether the filter acts on the gradient of ``e``. Default True.
        filter_c: Whether the filter acts on the gradients of ``c`` and ``bias``. Default True; False when pretraining,
            where rare words must not lose their gradient.
        accum_dtype: Least precision of logits, softmax and sums, ``torch.float32`` (default) or ``torch.float64``.
        impl: ``"auto"`` (default) chooses ``"triton"`` on a GPU where that can run, else ``"torch"``: chunks of plain
            torch operations on any device. ``"triton"`` is Triton kernels, on a GPU or in Triton's interpreter
            (``TRITON_INTERPRET=1``). They take float16, bfloat16 and float32, and accumulate in float32. ``"dense"`` is
            the reference, which holds all logits.
        chunk_bytes: Bound on the logits buffer of ``"torch"``, in bytes. Default 64 MiB. On a CPU less is used where
            less is faster. The smallest tile, 128 rows by 64 columns, is used even when it is larger than that.
        vocab_parallel: The part of the vocabulary this process holds, see :class:`VocabParallel`; ``c`` and ``bias``
            are that part. Default None: all of it.

    Returns:
        The loss: a scalar, or for ``"none"`` the shape of ``target`` after the shift. If anything else is asked for, a
        tuple of the loss and then, of log-sum-exp, entropy and argmax, in this order, those asked for; they have that
        shape too. float32, or float64 for float64 operands, but for the argmax.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, device, dtype or value does not fit; the message names the argument, what was expected
            and what came. Targets are looked at on the CPU always, on a GPU only with ``LOSSBOOK_DEBUG=1`` set.
        ImplementationUnavailableError: If ``impl="triton"`` cannot run here, with the reason; a ``ValueError`` and a
            ``RuntimeError``.
        RuntimeError: When a gradient is differentiated again, except with ``impl="dense"``.

    Examples:
        >>> e, c = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.eye(2)
        >>> cut_cross_entropy(e, c, torch.tensor([0, 1]))
        tensor(0.2201)
        >>> cut_cross_entropy(e, c, torch.tensor([0, -100]), reduction="none")
        tensor([0.3133, 0.0000])
        >>> loss, lse = cut_cross_entropy(e, c, torch.tensor([0, 1]), reduction="none", return_lse=True)
        >>> lse
        tensor([1.3133, 2.1269])
        >>> cut_cross_entropy(e, c, torch.tensor([0, 1]), temperature=0.5, return_entropy=True, return_argmax=True)
        (tensor(0.0725), tensor([0.3653, 0.0901]), tensor([0, 1]))
        >>> states, tokens = torch.zeros(1, 3, 2), torch.tensor([[0, 1, 1]])
        >>> cut_cross_entropy(states, c, tokens, shift=1, reduction="none").shape
        torch.Size([1, 2])

    Note:
        **Schedules.** ``impl="torch"`` computes gradients already in the forward pass (three products of ``2 N V D``
        operations, and a backward pass that only scales) when the reduction is ``"mean"`` or ``"sum"``, a gradient is
        needed, nothing but the loss is asked for, ``vocab_parallel`` is not used, the operands have the precision of
        ``accum_dtype``, and 128 whole rows of logits fit ``chunk_bytes``. Otherwise it makes two passes, the second of
        which computes the logits again (four products). Where ``e`` or ``c`` needs no gradient its product is skipped.
        ``impl="triton"`` makes two passes, of which the first stores no tile at all. Without a filter it computes
        gradients in the forward pass instead, under the same conditions on the call, if chunks of float32 logit rows
        fit ``chunk_bytes`` and cost less by the rule of :func:`head_advice`. With a filter the forward pass records
        which columns may pass it, a bit for each and for each block of rows, and the backward pass computes only those.

        **Memory.** Beyond the gradients: the logits buffer and a few rows of scratch; for operands below
        ``accum_dtype`` also a copy of ``e`` in it. Gradients are summed in ``accum_dtype`` and cast once. Gradients
        computed in the forward pass are alive from then on; ``backward`` hands them over without a copy, unless
        ``retain_graph=True`` or compiled. ``impl="triton"`` bounds the gradient by the logits, and the lists of kept
        columns, by ``chunk_bytes``; it needs ``4 N D`` bytes for the gradient of ``e`` in float32, ``N V / 1024`` for
        each threshold of a filter, and, where rows are ignored, a copy of the others.

        **Filter.** A block is 128 consecutive rows that are not ignored. A block keeps column :math:`v` if
        :math:`\max_i |\mathrm{softmax}(z_i)_v - [v = x_i]| \ge \varepsilon` over its rows, tested before any scaling by
        weights, reduction or the upstream gradient; the columns of its targets are always kept. The others count as
        zero in the gradient, in those of log-sum-exp and entropy too; in the entropy's a word of probability :math:`p`
        weighs up to :math:`\log 1 / p` times what it does in the loss's, and errors grow accordingly. Results other
        than gradients never depend on the filter. Label smoothing stays outside it, exact; with label smoothing and a
        softcap together the filter is off. Few kept columns save most of the gradient products.

        **Numbers.** Finite for logits up to 1e4 in magnitude and beyond. A logit of ``-inf`` (a bias of ``-inf``) masks
        a word. NaN and ``+inf`` in a row that counts make its loss NaN. The mean over no row is NaN, as in torch, with
        zero gradients; the sum is 0. The result of a call is repeatable bit for bit on a CPU, and with
        ``impl="triton"``, which has no floating-point atomics, wherever torch's matrix products are. It depends on
        ``chunk_bytes`` only by rounding. Under autocast the operands are cast as ``torch.nn.functional.linear`` does.
        ``torch.compile`` keeps the call in one graph; the transforms of ``torch.func`` need ``impl="dense"``. float32
        products of ``impl="triton"`` are exact unless ``torch.set_float32_matmul_precision`` allows less; then they
        are made of three TensorFloat-32 products, never of one. float16 needs loss scaling, as everywhere: the
        gradient by a logit is kept in the dtype of ``e``.

        **Tuning.** Tile shapes of ``impl="triton"`` come from a table. ``LOSSBOOK_AUTOTUNE=1`` in the environment
        times candidates on first use instead. Ignored rows and filters make the host wait for the device, so a call
        with either cannot be captured in a CUDA graph.

    References:
        Wijmans, Huval, Hertzberg, Koltun and Krähenbühl (2025), Cut Your Losses in Large-Vocabulary Language Models:
        Sec. 4.1 and Alg. 1 (target logit), Sec. 4.2 and Alg. 2 (log-sum-exp), Sec. 4.3 and Alg. 3 (backward, filter),
        Sec. 5.3 (``filter_c=False``). The column filter is this package's own; the paper drops tiles of 128 x 128.
        Chapter 17 (:doc:`/notebooks/17_cut_cross_entropy`).
    """
    check_options(
        ignore_index=ignore_index,
        softcap=softcap,
        temperature=temperature,
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
        check_shard(vocab_parallel, size, impl)
        size = vocab_parallel.vocab_size()
    check_class_weight(weight, size, e)
    check_target_range("target", target, size, symbol="V", ignore_index=ignore_index)

    e, target = shift_pairs(e, target, shift)
    e, c, bias = autocast_operands(e, c, bias)
    flat, work = target.reshape(-1), work_dtype(e.dtype, accum_dtype)
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
        work,
        chunk_bytes,
        1 / temperature,
        return_entropy,
        return_argmax,
        resolve_impl(impl, e, work),
    )
    outputs = linear_loss(
        problem,
        weight,
        vocab_parallel,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        reduction=reduction,
        want_lse=return_lse,
    )
    loss, *extras = (value for value in outputs if value is not None)
    if reduction == "none":
        loss = loss.reshape(target.shape)
    return (loss, *(value.reshape(target.shape) for value in extras)) if extras else loss
