"""Tile shapes of the kernels: a shipped table, so that no first call pays for a search.

Every first entry of a line compiles without spilling registers and within the shared memory of its target.  With
``LOSSBOOK_AUTOTUNE=1`` Triton times all entries of a line on first use instead, once per process, size and width of
the classifier.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lossbook.kernels.cross_entropy.tiles import FILTER_ROWS

# Row blocks of all kernels that know the filter: one block decides together.
BLOCK_ROWS = FILTER_ROWS
# Slots are dealt out to blocks, and columns to lines of active blocks, in portions of this many.
PORTION = 128
# Tiles of the small kernels, which are not worth timing: target logits, lists, and sweeps over whole rows.
TARGET_ROWS, TARGET_FEATURES, TARGET_WARPS = 16, 256, 8
LIST_COLUMNS, LIST_WORDS = 1024, 8
ROW_COLUMNS, ROW_WARPS = 4096, 8
# Without a device (the interpreter) plan as if for a small one, so that a vocabulary is still split.
_INTERPRETED_PROCESSORS = 4
_MIN_COLUMNS_PER_SPLIT = 256


class Config(NamedTuple):
    """Launch options of one kernel: its tile's columns and features, warps and pipeline stages."""

    columns: int
    features: int
    num_warps: int
    num_stages: int
    specialize: bool = False

    def meta(self, names: tuple[str, ...]) -> dict[str, int | bool]:
        """The kernel's constants, by the names it has for columns, features and, perhaps, specialization."""
        return dict(zip(names, (self.columns, self.features, self.specialize), strict=False))


class Architecture(NamedTuple):
    """A line of the table for each kernel; the first entry is the default.

    ``..._with_extras`` is for what costs registers: entropy, argmax, and label smoothing under a cap.
    """

    statistics: tuple[Config, ...]
    statistics_with_extras: tuple[Config, ...]
    logit_gradient: tuple[Config, ...]
    logit_gradient_with_extras: tuple[Config, ...]
    hidden_gradient: tuple[Config, ...]
    classifier_gradient: tuple[Config, ...]
    described_statistics: tuple[Config, ...] = ()


# Operands of two bytes.
_HALF = {
    "sm_80": Architecture(
        statistics=(Config(128, 64, 8, 3), Config(128, 32, 8, 4), Config(64, 64, 4, 3)),
        statistics_with_extras=(Config(128, 64, 8, 3), Config(64, 64, 8, 3)),
        logit_gradient=(Config(128, 64, 8, 3), Config(64, 64, 8, 3), Config(64, 64, 4, 3)),
        logit_gradient_with_extras=(Config(64, 64, 8, 3),),
        hidden_gradient=(Config(128, 128, 8, 2), Config(64, 128, 8, 3)),
        classifier_gradient=(Config(128, 128, 8, 2), Config(64, 128, 8, 2)),
    ),
    "sm_90": Architecture(
        statistics=(Config(256, 64, 8, 3), Config(128, 64, 8, 3), Config(128, 64, 4, 3)),
        statistics_with_extras=(Config(64, 64, 8, 4), Config(256, 64, 8, 4)),
        logit_gradient=(Config(128, 64, 8, 3), Config(128, 64, 8, 4), Config(64, 64, 4, 4)),
        logit_gradient_with_extras=(Config(64, 64, 8, 3),),
        hidden_gradient=(Config(128, 128, 8, 2), Config(64, 128, 8, 3), Config(128, 256, 8, 2)),
        classifier_gradient=(Config(128, 128, 8, 2), Config(128, 256, 8, 2), Config(64, 128, 4, 2)),
        described_statistics=(Config(256, 64, 8, 4), Config(256, 64, 8, 3), Config(128, 64, 8, 4)),
    ),
    "sm_100": Architecture(
        statistics=(Config(128, 64, 8, 3), Config(64, 64, 8, 3)),
        statistics_with_extras=(Config(64, 64, 8, 4), Config(64, 64, 8, 3)),
        logit_gradient=(Config(64, 64, 8, 3), Config(64, 64, 8, 4)),
        logit_gradient_with_extras=(Config(64, 64, 8, 3),),
        hidden_gradient=(Config(128, 128, 8, 2), Config(64, 128, 8, 3)),
        classifier_gradient=(Config(128, 128, 8, 2), Config(64, 128, 8, 2)),
        described_statistics=(Config(128, 64, 8, 4), Config(128, 64, 4, 4, specialize=True)),
    ),
    "gfx942": Architecture(
        statistics=(Config(128, 64, 8, 2), Config(128, 32, 8, 2)),
        statistics_with_extras=(Config(128, 64, 8, 2), Config(64, 64, 8, 2)),
        logit_gradient=(Config(128, 64, 8, 2), Config(64, 64, 4, 2)),
        logit_gradient_with_extras=(Config(64, 64, 8, 2),),
        hidden_gradient=(Config(64, 128, 8, 2), Config(64, 64, 4, 2)),
        classifier_gradient=(Config(128, 128, 8, 1), Config(64, 128, 8, 1)),
    ),
}

# Operands of four bytes: the same on all.
_SINGLE = Architecture(
    statistics=(Config(64, 32, 8, 2), Config(64, 32, 8, 3)),
    statistics_with_extras=(Config(64, 32, 8, 2),),
    logit_gradient=(Config(64, 32, 8, 2), Config(64, 32, 8, 3)),
    logit_gradient_with_extras=(Config(32, 32, 4, 2),),
    hidden_gradient=(Config(32, 64, 8, 2),),
    classifier_gradient=(Config(64, 32, 8, 1),),
)


def architecture(device: torch.device) -> str:
    """The line of the table that a device takes; devices this table does not know take the most modest one."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip:
        return "gfx942"
    major = torch.cuda.get_device_capability(device)[0]
    # 12 is Blackwell without the large shared memory and tensor memory of 10.
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_80")


def table(name: str, dtype: torch.dtype) -> Architecture:
    """The configurations for an architecture and a dtype of the operands."""
    return _HALF[name] if dtype.itemsize == 2 else _SINGLE


def n_splits(device: torch.device, blocks: int, columns: int) -> int:
    """Programs to share a block's sweep over the vocabulary, so that few blocks still fill the device."""
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    else:
        processors = _INTERPRETED_PROCESSORS
    return max(1, min(processors // blocks, columns // _MIN_COLUMNS_PER_SPLIT))


def use_descriptors(architecture: Architecture, *matrices: Tensor) -> bool:
    """Whether the tensor memory accelerator is there and can read these: rows start at multiples of 16 bytes."""
    return bool(architecture.described_statistics) and all(
        value.data_ptr() % 16 == 0 and value.stride(0) * value.element_size() % 16 == 0 and min(value.shape) > 0
        for value in matrices
    )


_TUNED: list[Any] = []


def timings() -> list[dict[str, Any]]:
    """What was timed in this process: for each kernel and key the winner, and the median time of every candidate."""
    return [
        {
            "kernel": tuned.base_fn.__name__,
            "key": [str(part) for part in key],
            "best": best.all_kwargs(),
            "candidates": [
                {**config.all_kwargs(), "ms": quantiles[0]}
                for config, quantiles in (tuned.configs_timings or {}).items()
            ],
        }
        for tuned in _TUNED
        for key, best in tuned.cache.items()
    ]


def descriptor(matrix: Tensor) -> TensorDescriptor:
    """A tensor descriptor; :func:`launch` sets its tile."""
    return TensorDescriptor.from_tensor(matrix, [1, 16])


def autotuning() -> bool:
    """Whether the environment asks to time the candidates."""
    return os.environ.get("LOSSBOOK_AUTOTUNE", "") not in ("", "0")


def launch(
    kernel: Any,
    configs: tuple[Config, ...],
    names: tuple[str, ...],
    grid: Callable[[dict[str, Any]], tuple[int, ...]],
    arguments: dict[str, Any],
    *,
    updates: tuple[str, ...] = (),
) -> None:
    """Run a kernel with the first of ``configs``, or with the fastest if the environment asks for that.

    ``updates`` names arguments that the kernel adds to, which timing it must not.
    """
    if autotuning():
        present = tuple(name for name in updates if arguments[name] is not None)
        _autotuned(kernel, configs, names, present)[grid](**arguments)
        return
    config = configs[0]
    meta = config.meta(names)
    _set_block_shapes({**arguments, **meta})
    kernel[grid](**arguments, **meta, num_warps=config.num_warps, num_stages=config.num_stages)


@functools.cache
def _autotuned(kernel: Any, configs: tuple[Config, ...], names: tuple[str, ...], updates: tuple[str, ...]) -> Any:
    candidates = [
        triton.Config(config.meta(names), config.num_warps, config.num_stages, pre_hook=_set_block_shapes)
        for config in configs
    ]
    tuned = triton.autotune(candidates, key=["n_features", "n_columns"], restore_value=list(updates))(kernel)
    _TUNED.append(tuned)
    return tuned


def _set_block_shapes(arguments: dict[str, Any]) -> None:
    """Descriptors load tiles of the configuration's size."""
    for name, rows in (("e", "BLOCK_ROWS"), ("c", "BLOCK_COLUMNS")):
        if isinstance(arguments.get(name), TensorDescriptor):
            arguments[name].block_shape = [arguments[rows], arguments["BLOCK_FEATURES"]]
