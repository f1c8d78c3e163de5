"""What a compiler makes of the Triton kernels: registers, spills, shared memory and instructions, without a GPU.

Every kernel is compiled ahead of time in the configurations that are shipped, once as a training step of a language
model uses it and once with every option on, and the machine code is taken apart.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
#: Shared memory that a program may use, in bytes.  For sm_80 it is that of its small relatives, sm_86 and sm_89.
SHARED_BYTES = {"sm_80": 101_376, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
#: Beginning of the names of the instructions that multiply matrices.
MATRIX_INSTRUCTION = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}

# Types of the kernels' arguments by name; "*T" is a pointer to operands, and what is not named is a 32-bit integer.
_TYPES = {
    **dict.fromkeys(("e", "c", "bias", "values", "d_c", "gradient", "q", "k", "v"), "*T"),
    **dict.fromkeys(
        (
            "target_logit class_weight lse lse_parts entropy_parts sum_parts top_parts total_parts mean d_lse d_target "
            "d_mean d_logit_sum peak column_sum d_e d_bias z logit_sum scores out parts"
        ).split(),
        "*fp32",
    ),
    **dict.fromkeys(
        (
            "argmax_parts column_map owner_map column_of block_of first_portion order slot_of active n_active count "
            "position lengths index block_table state histogram counts before"
        ).split(),
        "*i32",
    ),
    **dict.fromkeys(("target", "channels"), "*i64"),
    **dict.fromkeys(("token_scale", "token_zero"), "*fp16"),
    **dict.fromkeys("scale softcap eps level order_level v_scale".split(), "fp32"),
}
# Sizes of real heads are multiples of 16, which the compiler may use.
_ALIGNED = re.compile(r"n_features|\w*_stride")


@dataclass(frozen=True)
class Build:
    """One kernel to compile.

    Attributes:
        kernel: The function, as :func:`triton.jit` made it.
        architecture: Key of :data:`SHARED_BYTES`.
        variant: What tells builds of one kernel apart.
        dtype: Dtype of the operands, ``"bf16"`` or ``"fp32"``.
        constants: Values of constants, None for pointers that are not given.
        warps: Warps of a program.
        stages: Stages of its pipelines.
        matrix: Beginning of the names of the instructions that multiply matrices; default: those of the architecture
            for whole tiles.
    """

    kernel: Any
    architecture: str
    variant: str
    dtype: str
    constants: Mapping[str, Any]
    warps: int
    stages: int
    matrix: str = ""


@dataclass(frozen=True)
class CompiledKernel:
    """What became of a :class:`Build`.

    Attributes:
        kernel: Name of the kernel.
        architecture: What it was compiled for.
        variant: Which build of the kernel it is.
        dtype: Dtype of the operands.
        columns: Columns of its tile, None where it has none.
        features: Features of its tile, None where it has none.
        warps: Warps of a program.
        shared_bytes: Shared memory of a program.
        registers: Registers of a thread.
        spilled_bytes: Memory for what does not fit the registers, of a thread.
        matrix_instructions: Instructions that multiply matrices.
        descriptor_loads: Loads by the tensor memory accelerator.
        float_atomics: Atomic operations on floating-point numbers.
    """

    kernel: str
    architecture: str
    variant: str
    dtype: str
    columns: int | None
    features: int | None
    warps: int
    shared_bytes: int
    registers: int
    spilled_bytes: int
    matrix_instructions: int
    descriptor_loads: int
    float_atomics: int


def compile_build(build: Build) -> CompiledKernel:
    """Compile one kernel and count.

    Args:
        build: What to compile.

    Returns:
        Its resources and instructions.

    Raises:
        RuntimeError: If the compiler fails, or Triton is set to interpret.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = build.kernel
    while not hasattr(kernel, "cache_key"):  # heuristics and the like around it
        if not hasattr(kernel, "fn") or triton.knobs.runtime.interpret:
            raise RuntimeError("kernels cannot be compiled while TRITON_INTERPRET is set")
        kernel = kernel.fn
    # Listed columns are gathered; only a kernel without a list has a descriptor for the classifier.
    gathers = "column_of" in kernel.arg_names and build.constants.get("column_of", "given") is not None
    described = {"e"} if gathers else {"e", "c"}
    types = {name: _type(name, build, described) for name in kernel.arg_names}
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(kernel.arg_names)
        if types[name].startswith("*") or (types[name] == "i32" and _ALIGNED.fullmatch(name))
    }
    if build.architecture.startswith("gfx"):
        target = GPUTarget("hip", build.architecture, 64)
    else:
        target = GPUTarget("cuda", int(build.architecture.removeprefix("sm_")), 32)
    compiled = triton.compile(
        ASTSource(kernel, types, dict(build.constants), aligned),
        target=target,
        options={"num_warps": build.warps, "num_stages": build.stages},
    )
    count = _count_amd if target.backend == "hip" else _count_nvidia
    return CompiledKernel(
        kernel=kernel.__name__,
        architecture=build.architecture,
        variant=build.variant,
        dtype=build.dtype,
        columns=build.constants.get("BLOCK_COLUMNS", build.constants.get("BLOCK_TOKENS")),
        features=build.constants.get("BLOCK_FEATURES"),
        warps=build.warps,
        shared_bytes=compiled.metadata.shared,
        **count(compiled.asm, build.matrix or MATRIX_INSTRUCTION[build.architecture]),
    )


def _type(name: str, build: Build, described: set[str]) -> str:
    if name in build.constants:
        return "constexpr"
    if build.constants.get("DESCRIPTORS") and name in described:
        rows = build.constants["BLOCK_ROWS" if name == "e" else "BLOCK_COLUMNS"]
        return f"tensordesc<{build.dtype}[{rows},{build.constants['BLOCK_FEATURES']}]>"
    if name == "values" and build.constants.get("LEVELS"):
        return "*u8"
    return _TYPES.get(name, "i32").replace("*T", f"*{build.dtype}")


def _count_nvidia(code: Mapping[str, Any], matrix: str) -> dict[str, int]:
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        usage, listing = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    instructions = re.findall(r"^\s*/\*\w+\*/\s+(?:@!?\w+\s+)?([\w.]+)", listing, flags=re.MULTILINE)
    return {
        "registers": registers,
        "spilled_bytes": stack,
        "matrix_instructions": _starting(instructions, matrix),
        "descriptor_loads": _starting(instructions, "UTMALDG"),
        "float_atomics": sum(bool(re.match(r"(RED|ATOM)[GS]?\..*\.(F16|BF16|F32|F64)", name)) for name in instructions),
    }


def _count_amd(code: Mapping[str, Any], matrix: str) -> dict[str, int]:
    listing = code["amdgcn"]
    instructions = re.findall(r"^\s+(\w+)", listing, flags=re.MULTILINE)
    return {
        "registers": int(re.search(r"\.vgpr_count:\s*(\d+)", listing)[1]),
        "spilled_bytes": 4 * int(re.search(r"\.vgpr_spill_count:\s*(\d+)", listing)[1]),
        "matrix_instructions": _starting(instructions, matrix),
        "descriptor_loads": 0,
        "float_atomics": sum(
            bool(re.match(r"(global|flat|ds)_(pk_)?(add_r?tn_f|atomic_add_f)", n)) for n in instructions
        ),
    }


def _starting(instructions: Sequence[str], beginning: str) -> int:
    return sum(name.startswith(beginning) for name in instructions)


def cross_entropy_builds(architecture: str, dtype: str) -> Iterator[Build]:
    """The builds of the kernels of ``cut_cross_entropy``.

    Args:
        architecture: One of :data:`ARCHITECTURES`.
        dtype: ``"bf16"`` or ``"fp32"``.

    Yields:
        Builds in the default configurations; for sm_100 the specialized one too.
    """
    import torch

    from lossbook.kernels.cross_entropy.triton import column_map, config, gradients, row_chunks, statistics

    table = config.table(architecture, torch.bfloat16 if dtype == "bf16" else torch.float32)
    # As with torch.set_float32_matmul_precision("high").
    precision = "tf32x3" if dtype == "fp32" and architecture in ("sm_90", "sm_100") else "ieee"

    def build(kernel: Any, chosen: config.Config, variant: str, absent: str = "", **constants: Any) -> Build:
        constants = {"BLOCK_COLUMNS": chosen.columns, "BLOCK_FEATURES": chosen.features, "EVEN": True} | constants
        constants |= {"BLOCK_ROWS": config.BLOCK_ROWS, "PRECISION": precision} | dict.fromkeys(absent.split())
        return Build(kernel, architecture, variant, dtype, constants, chosen.num_warps, chosen.num_stages)

    absent = {"plain": "bias softcap class_weight sum_parts entropy_parts top_parts argmax_parts", "full": ""}
    for variant, names in absent.items():
        for described in (False, True) if table.described_statistics else (False,):
            chosen = (table.described_statistics if described else table.statistics)[0]
            if variant == "full":
                chosen = table.statistics_with_extras[0]
            name = variant + (", descriptors" if described else "")
            more = {"N_SPLITS": 2, "DESCRIPTORS": described, "WARP_SPECIALIZE": chosen.specialize}
            # Statistics have no list of columns: both of their operands can be described.
            yield build(statistics.statistics_kernel, chosen, name, names, **more)
    for chosen in table.described_statistics:
        if chosen.specialize:
            more = {"N_SPLITS": 2, "DESCRIPTORS": True, "WARP_SPECIALIZE": True}
            yield build(statistics.statistics_kernel, chosen, "plain, specialized", absent["plain"], **more)

    absent = {"plain": "bias softcap class_weight mean d_mean d_logit_sum column_sum", "full": ""}
    for variant, names in absent.items():
        for kind, lists in (("listed", ""), ("dense", " column_of block_of")):
            for described in (False, True) if table.described_statistics else (False,):
                chosen = (table.logit_gradient if variant == "plain" else table.logit_gradient_with_extras)[0]
                name = f"{variant}, {kind}" + (", descriptors" if described else "")
                more = {"PORTION": config.PORTION, "DESCRIPTORS": described}
                yield build(gradients.logit_gradient_kernel, chosen, name, names + lists, **more)

    portion = {"PORTION": config.PORTION}
    chosen = table.hidden_gradient[0]
    for kind in ("listed", "dense"):
        yield build(gradients.hidden_gradient_kernel, chosen, kind, LISTED=kind == "listed", **portion)
    chosen = table.classifier_gradient[0]
    yield build(gradients.classifier_gradient_kernel, chosen, "plain", "column_sum d_bias", **portion)
    yield build(gradients.classifier_gradient_kernel, chosen, "full", **portion)

    lists = {"BLOCK_COLUMNS": config.LIST_COLUMNS}
    rows = {"BLOCK_COLUMNS": config.ROW_COLUMNS}
    target = {"BLOCK_ROWS": config.TARGET_ROWS, "BLOCK_FEATURES": config.TARGET_FEATURES}
    for kernel, warps, constants in (
        (statistics.target_logit_kernel, config.TARGET_WARPS, target),
        (column_map.mark_targets_kernel, 4, {"N_MAPS": 2, "BLOCK_ROWS": config.BLOCK_ROWS}),
        (column_map.count_blocks_kernel, 4, {"WORDS": config.LIST_WORDS}),
        (column_map.count_kept_kernel, 4, lists),
        (column_map.list_kept_kernel, 4, lists | portion),
        (row_chunks.row_statistics_kernel, config.ROW_WARPS, rows),
        (row_chunks.row_gradient_kernel, config.ROW_WARPS, rows),
    ):
        yield Build(kernel, architecture, "full", dtype, constants, warps, stages=3)


def compile_all(
    architectures: Sequence[str] = ARCHITECTURES, dtypes: Sequence[str] = ("bf16", "fp32")
) -> list[CompiledKernel]:
    """Compile every build.

    Args:
        architectures: Names out of :data:`ARCHITECTURES`.
        dtypes: ``"bf16"``, ``"fp32"`` or both.

    Returns:
        One entry for each build.

    Raises:
        ValueError: If an architecture is unknown.
        RuntimeError: If the compiler fails.
    """
    from lossbook.bench.sparse_attention.builds import sparse_attention_builds

    unknown = [name for name in architectures if name not in ARCHITECTURES]
    if unknown:
        raise ValueError(f"architectures must be among {', '.join(ARCHITECTURES)}, got {', '.join(unknown)}")
    return [
        compile_build(build)
        for architecture in architectures
        for dtype in dtypes
        for builds in (cross_entropy_builds, sparse_attention_builds)
        for build in builds(architecture, dtype)
    ]


def to_json(compiled: Sequence[CompiledKernel]) -> dict[str, Any]:
    """The results in a form for a file.

    Args:
        compiled: What :func:`compile_all` returned.

    Returns:
        Nested dicts and lists.
    """
    import triton

    return {"benchmark": "compiled", "triton": triton.__version__, "kernels": [asdict(entry) for entry in compiled]}


def compiled_table(results: Mapping[str, Any], *, essential: bool = False) -> str:
    """A Markdown table of compiled kernels.

    Args:
        results: What :func:`to_json` returned.
        essential: Whether to leave out operands of four bytes, variants with every option on, and kernels without a
            product of matrices.

    Returns:
        The table, one line for each build.
    """
    lines = [
        "| Kernel | Variant | Operands | Target | Tile | Warps | Registers | Spilled bytes | Shared KiB | Matrix "
        "instructions |",
        "|---|---|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for entry in results["kernels"]:
        if essential and (entry["dtype"] != "bf16" or "full" in entry["variant"] or not entry["matrix_instructions"]):
            continue
        tile = " x ".join(str(entry[name]) for name in ("columns", "features") if entry[name])
        lines.append(
            f"| `{entry['kernel'].removesuffix('_kernel')}` | {entry['variant']} | {entry['dtype']} | "
            f"{entry['architecture']} | {tile} | {entry['warps']} | {entry['registers']} | {entry['spilled_bytes']} | "
            f"{entry['shared_bytes'] / 1024:.0f} | {entry['matrix_instructions']} |"
        )
    return "\n".join(lines)
