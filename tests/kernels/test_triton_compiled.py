"""The Triton kernels compile for every target, without a GPU, and fit it."""

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from lossbook.bench import compiled

# A kernel without a product of matrices needs no instruction for one.
WITHOUT_PRODUCT = {
    "target_logit_kernel",
    "mark_targets_kernel",
    "count_blocks_kernel",
    "count_kept_kernel",
    "list_kept_kernel",
    "row_statistics_kernel",
    "row_gradient_kernel",
}


@pytest.mark.parametrize("architecture", compiled.ARCHITECTURES)
def test_half_precision(architecture):
    built = [compiled.compile_build(build) for build in compiled.cross_entropy_builds(architecture, "bf16")]
    assert {entry.kernel for entry in built} >= WITHOUT_PRODUCT | {"statistics_kernel", "logit_gradient_kernel"}
    for entry in built:
        check_resources(entry)
        assert (entry.matrix_instructions > 0) == (entry.kernel not in WITHOUT_PRODUCT), entry
        assert (entry.descriptor_loads > 0) == ("descriptors" in entry.variant or "specialized" in entry.variant), entry


@pytest.mark.parametrize("architecture", ["sm_90", "gfx942"])
def test_single_precision(architecture):
    """Products of three TensorFloat-32 ones; tiles for all options are too low for the widest instruction."""
    for build in compiled.cross_entropy_builds(architecture, "fp32"):
        entry = compiled.compile_build(build)
        check_resources(entry)
        if entry.kernel not in WITHOUT_PRODUCT and not entry.variant.startswith("full"):
            assert entry.matrix_instructions > 0, entry


def check_resources(entry):
    assert entry.registers > 0
    assert entry.spilled_bytes == 0, entry
    assert entry.shared_bytes <= compiled.SHARED_BYTES[entry.architecture], entry
    # Sums in an order that depends on timing would not repeat.
    assert entry.float_atomics == 0, entry


def test_all_kernels_are_listed(monkeypatch):
    monkeypatch.setattr(compiled, "compile_build", lambda build: getattr(build.kernel, "fn", build.kernel).__name__)
    names = set(compiled.compile_all(["sm_90"], ["bf16"]))
    assert names >= WITHOUT_PRODUCT | {"statistics_kernel", "decode_kernel", "score_kernel"}


def test_there_is_a_specialized_build_where_it_compiles():
    variants = [build.variant for build in compiled.cross_entropy_builds("sm_100", "bf16")]
    assert "plain, specialized" in variants


def test_an_unknown_architecture():
    with pytest.raises(ValueError, match="architectures must be among sm_80, sm_90, sm_100, gfx942, got sm_75"):
        compiled.compile_all(["sm_80", "sm_75"])


def test_table():
    entry = compiled.CompiledKernel("join_kernel", "sm_90", "plain", "bf16", 128, None, 4, 2048, 27, 0, 0, 0, 0)
    results = compiled.to_json([entry])
    assert results["kernels"][0]["registers"] == 27
    assert "| `join` | plain | bf16 | sm_90 | 128 | 4 | 27 | 0 | 2 | 0 |" in compiled.compiled_table(results)
