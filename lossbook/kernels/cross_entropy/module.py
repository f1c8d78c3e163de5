"""The head as a module."""

import torch
from torch import Tensor, nn

from lossbook._validation import check_integer, check_positive
from lossbook.kernels.cross_entropy.arguments import check_options, filter_thresholds
from lossbook.kernels.cross_entropy.op import cut_cross_entropy
from lossbook.kernels.cross_entropy.parallel import VocabParallel


class LinearCrossEntropy(nn.Module):
    r"""A vocabulary head and its loss in one module: hidden states in, loss out, no logits in between.

    Owns ``weight`` (and ``bias``) exactly as :class:`torch.nn.Linear` does, so a checkpoint of a linear head loads,
    and ``module.weight = embedding.weight`` ties it.  The value is that of :func:`cut_cross_entropy`, for one token

    .. math:: \ell_i = \log \sum_v e^{z_{iv}} - z_{i,x_i} , \qquad z_{iv} = e_i \cdot c_v + b_v .

    Args:
        in_features: Length :math:`D` of a hidden state.
        out_features: Size :math:`V` of the vocabulary; with ``vocab_parallel`` the rows held here.
        bias: Whether to learn a bias, zero logit offset otherwise. Default False.
        ignore_index: As in :func:`cut_cross_entropy`, like all that follow up to ``vocab_parallel``. Default -100.
        softcap: Bound on the logits. Default None.
        temperature: Divisor of the logits. Default 1.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``. Default ``"mean"``.
        label_smoothing: Smoothing mass in ``[0, 1)``. Default 0.
        z_loss: Factor of the squared log-sum-exp. Default 0.
        weight: Class weights, shape ``(V,)``; kept as the buffer ``class_weight`` (not saved), since ``weight`` is
            the classifier. Default None.
        shift: Distance between a state and its target. Default 0.
        return_lse: Whether to return the log-sum-exp too. Default False.
        return_entropy: Whether to return the entropy too. Default False.
        return_argmax: Whether to return the index of the largest logit too. Default False.
        filter_eps: Gradient filter. Default None: exact gradients.
        filter_e: Whether the filter acts on the gradient of the hidden states. Default True.
        filter_c: Whether it acts on the gradients of ``weight`` and ``bias``. Default True.
        accum_dtype: Least precision of sums. Default float32.
        impl: Implementation. Default ``"auto"``. Whether it can run is seen when the module is called.
        chunk_bytes: Bound on the logits buffer in bytes. Default 64 MiB.
        vocab_parallel: This process's shard of the vocabulary. Default None.
        device: Device of the parameters. Default: torch's.
        dtype: Dtype of the parameters. Default: torch's.

    Returns:
        From ``module(e, target)``: what :func:`cut_cross_entropy` returns.

    Raises:
        TypeError: If a size is not an int.
        ValueError: If a size or an option is out of range.

    Examples:
        >>> head = LinearCrossEntropy(16, 1000)
        >>> loss = head(torch.randn(4, 10, 16), torch.randint(1000, (4, 10)))
        >>> loss.backward()
        >>> head.weight.grad.shape
        torch.Size([1000, 16])

    References:
        Wijmans et al. (2025), Cut Your Losses in Large-Vocabulary Language Models, Sec. 4; chapter 17
        (:doc:`/notebooks/17_cut_cross_entropy`).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            check_integer(name, size)
            check_positive(name, size)
        self.in_features, self.out_features = in_features, out_features
        checked = {
            "ignore_index": ignore_index,
            "softcap": softcap,
            "temperature": temperature,
            "reduction": reduction,
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "shift": shift,
            "accum_dtype": accum_dtype,
            "impl": impl,
            "chunk_bytes": chunk_bytes,
        }
        check_options(**checked)
        filter_thresholds(filter_eps, filter_e, filter_c)
        self.options = {
            **checked,
            "return_lse": return_lse,
            "return_entropy": return_entropy,
            "return_argmax": return_argmax,
            "filter_eps": filter_eps,
            "filter_e": filter_e,
            "filter_c": filter_c,
            "vocab_parallel": vocab_parallel,
        }
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        # Not in the state, so that the checkpoint of a plain linear head loads.
        self.register_buffer("class_weight", weight, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the parameters anew, uniform in :math:`\pm 1 / \sqrt{D}` as :class:`torch.nn.Linear` does.

        Examples:
            >>> LinearCrossEntropy(4, 10).reset_parameters()
        """
        bound = self.in_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, e: Tensor, target: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Loss of hidden states against targets.

        Args:
            e: Hidden states, shape ``(..., in_features)``.
            target: Class indices, int64, shape ``(...)``.

        Returns:
            The loss, or a tuple of it and what ``return_lse``, ``return_entropy`` and ``return_argmax`` ask for.

        Raises:
            TypeError: If an argument has the wrong type or dtype.
            ValueError: If a shape or a target does not fit.

        Examples:
            >>> head = LinearCrossEntropy(2, 4, reduction="sum")
            >>> round(head(torch.zeros(3, 2), torch.tensor([0, 1, 2])).item(), 4)  # 3 log 4
            4.1589
        """
        return cut_cross_entropy(e, self.weight, target, self.bias, weight=self.class_weight, **self.options)

    def extra_repr(self) -> str:
        """The sizes and the options that are not the default.

        Returns:
            A line for ``repr``.

        Examples:
            >>> LinearCrossEntropy(2, 4, softcap=30.0)
            LinearCrossEntropy(in_features=2, out_features=4, bias=False, softcap=30.0)
        """
        defaults = cut_cross_entropy.__kwdefaults__
        changed = [f"{name}={value!r}" for name, value in self.options.items() if value != defaults[name]]
        sizes = [
            f"in_features={self.in_features}",
            f"out_features={self.out_features}",
            f"bias={self.bias is not None}",
        ]
        return ", ".join(sizes + changed)
