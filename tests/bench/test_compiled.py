"""The command that compiles the kernels and counts, apart from the compiling itself."""

import dataclasses
import importlib.util
import json

import pytest
from typer.testing import CliRunner

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from lossbook.bench import cli, compiled

ENTRY = compiled.CompiledKernel("join_kernel", "sm_90", "plain", "bf16", 128, 64, 4, 2048, 27, 0, 16, 0, 0)


def test_command_writes_what_it_shows(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "compile_all", lambda architectures: asked.append(list(architectures)) or [ENTRY])
    path = tmp_path / "results" / "compiled.json"
    for options, targets in (([], list(compiled.ARCHITECTURES)), (["--targets", "sm_90, gfx942"], ["sm_90", "gfx942"])):
        result = CliRunner().invoke(cli.cli_app, ["compiled", "--out", str(path), *options])
        assert result.exit_code == 0, result.output
        assert asked[-1] == targets
    stored = json.loads(path.read_text())
    assert stored == compiled.to_json([ENTRY])
    assert result.output.rstrip("\n") == compiled.compiled_table(stored)


def test_command_names_the_targets_there_are():
    result = CliRunner().invoke(cli.cli_app, ["compiled", "--targets", "sm_75"])
    assert result.exit_code == 2
    assert "sm_75" in result.output and "gfx942" in result.output


def test_interpreted_kernels_cannot_be_compiled(monkeypatch):
    import triton

    build = next(compiled.cross_entropy_builds("sm_80", "bf16"))
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    with pytest.raises(RuntimeError, match="cannot be compiled while TRITON_INTERPRET is set"):
        compiled.compile_build(build)


def test_the_essential_table_leaves_out_what_few_ask_about():
    other = [{"dtype": "fp32"}, {"variant": "full, listed"}, {"matrix_instructions": 0}]
    results = compiled.to_json([ENTRY, *(dataclasses.replace(ENTRY, **change) for change in other)])
    assert len(compiled.compiled_table(results).splitlines()) == 2 + 4
    assert len(compiled.compiled_table(results, essential=True).splitlines()) == 2 + 1
