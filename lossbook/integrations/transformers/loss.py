"""A causal language model whose training loss never holds the logits."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from lossbook.integrations.transformers.deferred import DeferredHead, DeferredLogits, StubBackbone, View
from lossbook.integrations.transformers.models import transformers_model
from lossbook.kernels import LinearCrossEntropy, cut_cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound=nn.Module)

# The other keywords of cut_cross_entropy are decided by the model and its batch.
OPTIONS = ("label_smoothing", "z_loss", "filter_eps", "filter_e", "filter_c", "accum_dtype", "impl", "chunk_bytes")


def patch(model: Model, **options: Any) -> Model:
    r"""Make a causal language model compute its training loss without its logits.

    Called with ``labels``, the model runs as before up to its head; head, logit scaling, softcap and loss are then one
    call of :func:`~lossbook.kernels.cut_cross_entropy` on the last hidden states, and the output has ``logits=None``.
    Called without ``labels``, and in ``generate``, it is what it was, bit for bit. Parameters, state dict and
    configuration are not touched, so checkpoints are saved and loaded as ever.

    The model's own ``forward`` does the work, with its head and its loss function exchanged for the duration of a call.
    So whatever it supports goes on working: ``shift_labels``, ``num_items_in_batch`` (gradient accumulation in
    ``Trainer``), ``ignore_index``, ``logits_to_keep``, the auxiliary loss of a mixture of experts,
    ``return_dict=False`` (the tuple then has no entry for the logits), ``output_hidden_states``, a cache, autocast,
    gradient checkpointing, ``torch.compile``.

    Args:
        model: A causal language model of Transformers 5, or one wrapped by PEFT, whose inner model is patched. Its
            head must be an ordinary ``torch.nn.Linear`` without hooks, tied to the embedding or not.
        **options: Keywords of :func:`~lossbook.kernels.cut_cross_entropy`, with its defaults: ``label_smoothing``,
            ``z_loss``, ``filter_eps``, ``filter_e``, ``filter_c``, ``accum_dtype``, ``impl`` and ``chunk_bytes``. They
            hold in training and evaluation alike. Patching a patched model replaces them all.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: If ``model`` is no model of Transformers (a compiled or distributed one is patched before it is
            wrapped), or an option is unknown or of the wrong type.
        ValueError: If an option is out of range, or the model is not supported; the message names the architecture and
            what is missing. ``model`` is then as it was.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        >>> model = patch(LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes)), filter_eps="auto", filter_c=False)
        >>> tokens = torch.tensor([[1, 2, 3, 4]])
        >>> output = model(input_ids=tokens, labels=tokens)
        >>> output.logits is None
        True
        >>> output.loss.backward()
        >>> unpatch(model)(input_ids=tokens).logits.shape
        torch.Size([1, 4, 100])

    Note:
        ``Trainer`` evaluates such a model with ``prediction_loss_only=True``; metrics that need logits need
        ``unpatch``. Its ``label_smoothing_factor`` and ``compute_loss_func`` make their own loss from the logits: use
        ``patch(model, label_smoothing=...)``. Of PyTorch's wrappers for several GPUs, ``DistributedDataParallel``
        works; ``DataParallel``, which copies the model in each step, does not.

    References:
        Wijmans et al. (2025), Cut Your Losses in Large-Vocabulary Language Models; chapter 17
        (:doc:`/notebooks/17_cut_cross_entropy`) and the page :doc:`/book/transformers`.
    """
    causal = transformers_model(model)
    check_options(options)
    if not isinstance(_own_forward(causal), LossForward | None):
        raise _unsupported(causal, "its forward method was replaced on the instance, for example by a device map")
    head = _head_name(causal)
    _check_structure(causal, head)
    causal.forward = LossForward(causal, head, options)
    return model


def unpatch(model: Model) -> Model:
    """Undo :func:`patch`; a model that is not patched is left alone.

    Args:
        model: A model that :func:`patch` accepts.

    Returns:
        ``model`` itself, with the ``forward`` of its class.

    Raises:
        TypeError: If ``model`` is no model of Transformers.
        ValueError: If something else, such as Accelerate's mixed precision, has replaced ``forward`` since and has to
            be removed first; the message says how.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes))
        >>> unpatch(patch(model)) is model
        True
        >>> "forward" in vars(model)
        False

    References:
        Chapter 17 (:doc:`/notebooks/17_cut_cross_entropy`) and the page :doc:`/book/transformers`.
    """
    causal = transformers_model(model)
    forward = _own_forward(causal)
    if not isinstance(forward, LossForward | None):
        raise ValueError(
            f"model must have the forward of its class or of patch, got {type(causal).__name__} with {forward!r}; undo "
            "what replaced it first, Accelerate's mixed precision by "
            "accelerate.utils.extract_model_from_parallel(model, keep_fp32_wrapper=False)"
        )
    if forward is not None:
        del causal.forward
    return model


class LossForward:
    """The ``forward`` of a patched model: its own, except for head and loss function when there are labels."""

    def __init__(self, model: PreTrainedModel, head: str, options: dict[str, Any]) -> None:
        # Weak, so that a model which is no longer used is freed at once and not by the next garbage collection.
        self.model = weakref.ref(model)
        self.head, self.options = head, options
        self.labels_position = _parameters(model).index("labels")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output, its loss computed without logits if there are labels."""
        model = self.model()
        if args and args[0] is model:
            args = args[1:]  # bound to the model like a method, which Accelerate does when it takes its wrapper off
        forward = type(model).forward
        labels = args[self.labels_position] if len(args) > self.labels_position else kwargs.get("labels")
        if labels is None:
            return forward(model, *args, **kwargs)
        head = getattr(model, self.head)
        _check_head(model, head)
        view = View(model, loss_function=self.loss, **{self.head: DeferredHead(head)})
        return _without_logits(forward(view, *args, **kwargs))

    def loss(
        self,
        logits: DeferredLogits,
        labels: Tensor,
        vocab_size: int,
        num_items_in_batch: Tensor | float | None = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **ignored: Any,
    ) -> Tensor:
        """The loss with the signature and the meaning that Transformers gives it for causal language models."""
        hidden, head = logits.hidden, logits.head
        if vocab_size != head.weight.shape[0]:
            raise ValueError(f"vocab_size must be the rows of the head = {head.weight.shape[0]}, got {vocab_size}")
        if shift_labels is None:
            # Not by cutting off the last state, which would copy all others.
            shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        rows = hidden.reshape(-1, hidden.shape[-1])
        target = shift_labels.reshape(-1).to(rows.device)
        if len(target) != len(rows):
            raise ValueError(
                "labels must have one entry for each position whose logits are asked for, here "
                f"{tuple(hidden.shape[:-1])}, got {tuple(shift_labels.shape)}; check logits_to_keep"
            )
        loss = cut_cross_entropy(
            rows,
            head.weight,
            target,
            head.bias,
            ignore_index=ignore_index,
            reduction="mean" if num_items_in_batch is None else "sum",
            **logits.options(),
            **self.options,
        )
        if torch.is_tensor(num_items_in_batch):
            num_items_in_batch = num_items_in_batch.to(loss.device)
        return loss if num_items_in_batch is None else loss / num_items_in_batch

    @property
    def __signature__(self) -> inspect.Signature:
        # Trainer and generate look here for the columns and keywords that the model takes.
        model = self.model()
        return inspect.signature(MethodType(type(model).forward, model))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "model": self.model()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, model=weakref.ref(state["model"]))


def check_options(options: dict[str, Any]) -> None:
    """Check the options of :func:`patch` by name, type and range."""
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"options of patch must be among {', '.join(OPTIONS)}, got {name}")
    LinearCrossEntropy(1, 1, device="meta", **options)


def _own_forward(model: PreTrainedModel) -> Any:
    """What stands on the instance in place of the ``forward`` of its class, or None."""
    forward = vars(model).get("forward")
    return forward.__func__ if isinstance(forward, MethodType) else forward


def _head_name(model: PreTrainedModel) -> str:
    """Under which attribute a supported model keeps its head."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    if model.config.is_encoder_decoder:
        raise _unsupported(model, "it is an encoder-decoder model")
    if "labels" not in _parameters(model):
        raise _unsupported(model, "its forward takes no labels")
    if any(f.__globals__["__name__"] == "transformers.utils.output_capturing" for f in _wrapped(type(model).forward)):
        raise _unsupported(model, "its own forward, and not its backbone's, collects hidden states by class")
    head = model.get_output_embeddings()
    if head is None:
        raise _unsupported(model, "it has no language-model head")
    if model.loss_function is not ForCausalLMLoss:
        name = getattr(model.loss_function, "__name__", type(model.loss_function).__name__)
        raise _unsupported(model, f"its loss function is {name}, not the one of causal language models")
    _check_head(model, head)
    if type(head.weight) is not nn.Parameter:
        raise _unsupported(model, f"the weight of its head is a {type(head.weight).__name__}, not a plain parameter")
    for name, child in model.named_children():
        if child is head:
            return name
    raise _unsupported(model, "its head is not an attribute of the model itself")


def _check_head(model: PreTrainedModel, head: Any) -> None:
    """Require that calling the head is nothing but one product with its weight."""
    # bitsandbytes' quantized layers inherit from nn.Linear too, and LoRA layers stand in its place.
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward or "forward" in vars(head):
        raise _unsupported(model, f"its head must be an ordinary torch.nn.Linear, got {type(head).__name__}")
    if head._forward_pre_hooks or head._forward_hooks or head._backward_pre_hooks or head._backward_hooks:
        raise _unsupported(model, "its head has hooks, which would not run")


def _check_structure(model: PreTrainedModel, head_name: str) -> None:
    """Run ``forward`` on two tokens without its backbone and see that head and loss function meet as they must."""
    head, backbone = getattr(model, head_name), model.base_model
    if backbone is model:
        raise _unsupported(model, f"it has no backbone under {model.base_model_prefix!r}")
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=head.weight.device)
    inputs = {"input_ids": tokens, "labels": tokens}
    if "attention_mask" in _parameters(model):
        inputs["attention_mask"] = torch.ones_like(tokens)
    if hasattr(model.config, "output_router_logits"):
        inputs["output_router_logits"] = False
    hidden = head.weight.new_zeros(1, 2, head.in_features)
    for training in (True, False):
        calls = []

        def loss_function(logits: Any, labels: Tensor, vocab_size: int, *, _calls: list = calls, **_: Any) -> Tensor:
            _calls.append((logits, vocab_size))
            return hidden.new_zeros(())

        substitutes = {head_name: DeferredHead(head), model.base_model_prefix: StubBackbone(backbone, hidden=hidden)}
        view = View(model, loss_function=loss_function, training=training, **substitutes)
        try:
            with torch.no_grad():
                type(model).forward(view, **inputs)
        except Exception as error:
            raise _unsupported(model, f"its forward does not lead from head to loss as expected ({error})") from error
        if len(calls) != 1 or not isinstance(calls[0][0], DeferredLogits):
            raise _unsupported(model, "its forward does not pass the output of its head to loss_function, once")
        if calls[0][1] != head.out_features:
            raise _unsupported(model, f"its vocab_size is {calls[0][1]}, but its head has {head.out_features} rows")


def _wrapped(function: Callable | None) -> Iterator[Callable]:
    """A function and those that its decorators have wrapped."""
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def _parameters(model: PreTrainedModel) -> list[str]:
    """Names of the parameters of ``forward``, without ``self``."""
    return list(inspect.signature(type(model).forward).parameters)[1:]


def _without_logits(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(value for value in output if not isinstance(value, DeferredLogits))
    return type(output)(**{name: value for name, value in output.items() if name != "logits"})


def _unsupported(model: PreTrainedModel, reason: str) -> ValueError:
    return ValueError(f"model must be a supported causal language model, got {type(model).__name__}: {reason}")
