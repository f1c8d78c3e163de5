"""The ``lossbook`` command: results, sentences and exit codes."""

import csv
import json
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

import lossbook
from lossbook import cli, cli_run
from lossbook.chapter import catalog
from lossbook.chapter import execute as execution
from lossbook.chapter import scoreboard as scores
from lossbook.chapter.claims import parse_claims
from lossbook.data import DataError, assets

CLAIMS = """
chapter: 17_cut_cross_entropy
claims:
  - {id: 17.a, statement: Equal., kind: identity, central: true, paper: exact, where: Sec. 4, criteria: {error: <= 1}}
  - {id: 17.b, statement: Small., kind: kernel, paper: 24 GB, where: Table 1, criteria: {ratio: <= 0.5, mib: <= 64}}
"""


def invoke(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def card(verdict="reproduced", ratio="0.25 + seed / 100"):
    """Source of a cell that shows a reproduction card."""
    common = "'enforced': True, 'expect': 'reproduced', 'note': ''"
    return (
        "from IPython.display import display\n"
        "claims = [\n"
        f"    {{'id': '17.a', 'statement': 'Equal.', {common}, 'criteria': {{'error': '<= 1e-10'}},\n"
        "     'measured': {'error': 3e-12}, 'verdict': 'reproduced'},\n"
        f"    {{'id': '17.b', 'statement': 'Small.', {common}, 'criteria': {{'ratio': '<= 0.5', 'mib': '<= 64'}},\n"
        f"     'measured': {{'ratio': {ratio}, 'mib': 60.0}}, 'verdict': {verdict!r}}},\n"
        "]\n"
        "display({'text/plain': 'card'}, metadata={'lossbook': {'profile': profile, 'claims': claims}}, raw=True)"
    )


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A function that writes a chapter 17 of the given cells into an otherwise empty book."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(catalog, "notebooks_dir", lambda: folder)
    monkeypatch.setattr(scores, "load_claims", lambda slug: parse_claims(CLAIMS, slug))
    monkeypatch.chdir(tmp_path)
    # Wide enough that no word of a table is broken.
    monkeypatch.setenv("COLUMNS", "160")

    def write(*sources):
        cells = [
            new_markdown_cell("# A chapter"),
            new_code_cell('profile = "cpu"\nseed = 0', metadata={"tags": ["parameters"]}),
            *map(new_code_cell, sources),
        ]
        nbformat.write(new_notebook(cells=cells), folder / "17_cut_cross_entropy.ipynb")
        return folder / "17_cut_cross_entropy.ipynb"

    return write


def sentence(result, code):
    """The one line that a failed command writes to standard error; nothing else, and no traceback."""
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("lossbook: ") and "Traceback" not in result.output
    return lines[-1].removeprefix("lossbook: ")


@pytest.mark.parametrize("words", [["--help"], ["list"], ["list", "--json"], ["run", "99"], ["fetch", "--list"]])
def test_quick_commands_do_not_import_torch(words):
    code = (
        "import sys\nfrom lossbook.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "False"


def test_version():
    assert invoke("--version").output == f"lossbook {lossbook.__version__}\n"


@pytest.mark.parametrize(
    "words", [["nothing"], ["run"], ["run", "17", "--profile", "big"], ["run", "17", "--seed", "-1"], ["list", "--x"]]
)
def test_bad_usage_is_code_2(words):
    result = invoke(*words)
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert "Error" in result.stderr or "Missing" in result.stderr


def test_list_shows_written_and_planned_chapters(book):
    execution_path = book(card())
    notebook = nbformat.read(execution_path, as_version=4)
    notebook.metadata["lossbook"] = {"profile": "cpu", "cpu_seconds": 41.7}
    notebook.cells[-1].outputs = [
        nbformat.v4.new_output("display_data", {"text/plain": "card"}, metadata={"lossbook": recorded()})
    ]
    nbformat.write(notebook, execution_path)

    listed = json.loads(invoke("list", "--json").output)
    assert [chapter["number"] for chapter in listed] == list(range(1, 29))
    [written] = [chapter for chapter in listed if chapter["written"]]
    assert (written["slug"], written["profile"], written["seconds"]) == ("17_cut_cross_entropy", "cpu", 41.7)
    assert [(claim["id"], claim["verdict"]) for claim in written["claims"]] == [
        ("17.a", "reproduced"),
        ("17.b", "partly"),
    ]
    text = invoke("list").output
    assert "V. Kernels" in text and "1 of 28 chapters written" in text and "planned" in text
    assert "✓ 1  ◐ 1" in text and "42" in text


def recorded():
    return {
        "profile": "cpu",
        "claims": [
            {
                "id": "17.a",
                "criteria": {"error": "<= 1"},
                "measured": {"error": 3e-12},
                "verdict": "reproduced",
            },
            {
                "id": "17.b",
                "criteria": {"ratio": "<= 0.5", "mib": "<= 64"},
                "measured": {"ratio": 0.3, "mib": 99.0},
                "verdict": "partly",
            },
        ],
    }


def test_scoreboard_in_three_forms(book):
    path = book(card())
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].outputs = [
        nbformat.v4.new_output("display_data", {"text/plain": "card"}, metadata={"lossbook": recorded()})
    ]
    nbformat.write(notebook, path)
    board = json.loads(invoke("scoreboard", "--json").output)
    assert board["totals"]["claims"] == 2 and [row["verdict"] for row in board["rows"]] == ["reproduced", "partly"]
    assert invoke("scoreboard", "--markdown").output.startswith("| Chapter | Claim |")
    text = invoke("scoreboard").output
    assert "2 claims in 1 of 28 chapters: 1 reproduced, 1 partly, 0 needs GPU, 0 not reproduced" in text
    assert "exclude each other" in sentence(invoke("scoreboard", "--json", "--markdown"), 2)


@pytest.mark.parametrize("command", [["scoreboard"], ["list"], ["scoreboard", "--json"], ["scoreboard", "--markdown"]])
def test_an_empty_book_is_listed(book, command):
    assert invoke(*command).exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["99"], "there is no chapter '99'; written chapters: 17"),
        (["17", "seventeen"], "there is no chapter 'seventeen'; written chapters: 17"),
        (["18"], "chapter 18 (double_sparsity) is planned but not written yet; written chapters: 17"),
        (["embedding_losses"], "comparison embedding_losses is planned but not written yet; written chapters: 17"),
    ],
)
def test_run_refuses_chapters_that_do_not_exist(book, words, message):
    book(card())
    assert sentence(invoke("run", *words), 2) == message


@pytest.mark.notebook
def test_run_takes_a_comparison_by_its_name(book):
    book("1 + 1").rename(catalog.notebooks_dir() / "embedding_losses.ipynb")
    result = invoke("run", "embedding_losses", "--profile", "smoke")
    assert result.exit_code == 0
    assert "comparison embedding_losses: " in result.output


def test_run_all_of_an_empty_book_says_so(book):
    assert sentence(invoke("run", "all"), 2) == "no chapter is written yet, so there is nothing to run"


def test_the_gpu_profile_without_a_gpu_says_so(book, monkeypatch):
    import torch

    book(card())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = sentence(invoke("run", "17", "--profile", "gpu"), 2)
    assert message.startswith("the gpu profile needs a CUDA device") and "--profile cpu" in message


def test_a_folder_that_cannot_be_written_says_so(book, tmp_path):
    book(card())
    (tmp_path / "file").write_text("not a folder")
    message = sentence(invoke("run", "17", "--out", tmp_path / "file" / "runs"), 2)
    assert message.startswith("cannot write to the folder") and message.endswith("give another with --out")
    message = sentence(invoke("run", "17", "--csv", tmp_path / "missing" / "a.csv"), 2)
    assert "give --csv a file in an existing, writable folder" in message
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.notebook
def test_run_shows_the_card_and_exits_0(book, tmp_path):
    book(card())
    result = invoke("run", "17", "cut_cross_entropy", "--profile", "smoke", "--seed", 2, "--out", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    [path] = (tmp_path / "runs").iterdir()
    assert path.name == "17_cut_cross_entropy-smoke-seed2.ipynb" and f"notebook: {path}" in result.stdout
    assert result.stdout.count("(profile smoke, seed 2)") == 1, "the same chapter named twice runs once"
    for word in ("17.a", "17.b", "Equal.", "3e-12", "reproduced"):
        assert word in result.stdout
    assert "chapter 17, smoke, seed 2" in result.stderr


@pytest.mark.notebook
def test_several_seeds_give_a_table_and_a_csv_file(book, tmp_path):
    book(card())
    table = tmp_path / "values.csv"
    result = invoke("run", "17", "--seeds", 2, "--seed", 1, "--csv", table)
    assert result.exit_code == 0, result.output
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["claim"], row["quantity"], row["measured"], row["met"]) for row in rows] == [
        ("1", "17.a", "error", "3e-12", "True"),
        ("1", "17.b", "mib", "60.0", "True"),
        ("1", "17.b", "ratio", "0.26", "True"),
        ("2", "17.a", "error", "3e-12", "True"),
        ("2", "17.b", "mib", "60.0", "True"),
        ("2", "17.b", "ratio", "0.27", "True"),
    ]
    assert "0.265" in result.stdout and "0.00707" in result.stdout and "2 of 2" in result.stdout
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.notebook
def test_a_failed_claim_is_named_and_the_notebook_kept(book, tmp_path):
    book(card("not reproduced", ratio="9"), "raise AssertionError('17.b is not reproduced, expected reproduced')")
    table = tmp_path / "values.csv"
    result = invoke("run", "17", "--csv", table)
    message = sentence(result, 1)
    assert message.startswith("chapter 17 (seed 0) failed claim 17.b: AssertionError: 17.b is not reproduced")
    assert message.endswith("the notebook is kept in runs/17_cut_cross_entropy-cpu-seed0.ipynb")
    assert "not reproduced" in result.stdout and "False" in table.read_text()


@pytest.mark.notebook
def test_a_failing_cell_is_named_and_the_notebook_kept(book, tmp_path):
    book("print('so far')", "# it breaks\nx = 1 / 0")
    message = sentence(invoke("run", "17"), 1)
    assert message.startswith("chapter 17 (seed 0) failed in cell 4 of 4 (x = 1 / 0): ZeroDivisionError: division by")
    assert "so far" in (tmp_path / "runs" / "17_cut_cross_entropy-cpu-seed0.ipynb").read_text()


@pytest.mark.notebook
def test_a_dying_kernel_is_a_sentence(book):
    book("import os; os._exit(1)")
    message = sentence(invoke("run", "17"), 1)
    assert message.startswith("chapter 17 stopped by DeadKernelError: Kernel died; the notebook up to there is kept in")


@pytest.mark.notebook
def test_ctrl_c_keeps_the_partial_notebook_and_ends_the_kernel(book, tmp_path):
    pid_file = tmp_path / "pid"
    notebook = book(
        "print('so far')",
        f"import os, pathlib, time\npathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\ntime.sleep(600)",
    )
    code = (
        "import sys, pathlib\nfrom lossbook.chapter import catalog\nfrom lossbook.cli import main\n"
        f"catalog.notebooks_dir = lambda: pathlib.Path({str(notebook.parent)!r})\nmain(['run', '17'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (pid_file.exists() and pid_file.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = "runs/17_cut_cross_entropy-cpu-seed0.ipynb"
    assert errors.strip().splitlines()[-1] == (
        f"lossbook: chapter 17 was interrupted; the notebook up to there is kept in {kept}"
    )
    assert "so far" in (tmp_path / kept).read_text()
    assert not _alive(int(pid_file.read_text()))


def _alive(pid):
    import psutil

    for _ in range(50):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return False
        time.sleep(0.1)
    return True


def test_interrupted_seeds_keep_what_was_measured(book, tmp_path, monkeypatch):
    book(card())
    done = []

    def execute(info, *, seed, out, **options):
        if done:
            raise KeyboardInterrupt
        done.append(seed)
        claim = {"id": "17.a", "statement": "", "criteria": {"error": "<= 1"}, "measured": {"error": 0.5}}
        claim |= {"verdict": "reproduced", "expect": "reproduced", "enforced": True}
        return execution.ExecutionResult(out / "x.ipynb", 1.0, 1.0, {"claims": [claim]}, None)

    monkeypatch.setattr(execution, "execute", execute)
    result = invoke("run", "17", "--seeds", 3, "--csv", tmp_path / "a.csv")
    assert sentence(result, 130) == "chapter 17 was interrupted; no cell had run"
    assert (tmp_path / "a.csv").read_text().count("17.a") == 1


def test_measured_records_keep_what_is_not_finite(book):
    book(card())
    claim = {"id": "17.a", "criteria": {"error": "<= 1"}, "measured": {"error": "nan"}, "verdict": "not reproduced"}
    result = execution.ExecutionResult(None, 1.0, 1.0, {"claims": [claim]}, "x")
    [record] = cli_run.measured_records(catalog.find(17), "cpu", 0, result)
    assert (record["measured"], record["met"]) == ("nan", False)


@pytest.fixture
def small_assets(monkeypatch, tmp_path):
    """Replaces what can be fetched by something small; returns the list of steps to be taken."""
    from lossbook.data import cache

    problems = []

    def build(stage, progress):
        progress("downloading", 0.5)
        if problems:
            raise problems.pop()
        (stage / "weights.bin").write_bytes(b"x" * 2_000_000)
        cache.write_manifest(stage, {"asset": "toy"})

    asset = assets.Asset("toy", "a toy", "this test", "CC0-1.0", 2_000_000, build)
    monkeypatch.setattr(assets, "ASSETS", {"toy": asset})
    monkeypatch.setenv("LOSSBOOK_CACHE", str(tmp_path / "cache"))
    return problems


def test_fetch_goes_from_missing_to_present(small_assets, tmp_path):
    assert "missing" in invoke("fetch", "--list").output
    result = invoke("fetch")
    assert result.exit_code == 0 and result.stdout.startswith(f"toy: 2 MB in {tmp_path / 'cache' / 'toy'}, after ")
    again = invoke("fetch", "toy", "all")
    assert again.stdout == f"toy: already present in {tmp_path / 'cache' / 'toy'}\n"
    assert "already" not in invoke("fetch", "--force").stdout
    listed = invoke("fetch", "--list").output
    assert "ok" in listed and "CC0-1.0" in listed and str(tmp_path / "cache") in listed


def test_fetch_of_something_unknown_is_code_2(small_assets):
    assert sentence(invoke("fetch", "toi"), 2) == "there is nothing called 'toi' to fetch: choose from toy, or all"


def test_a_failed_fetch_is_one_sentence_with_code_1(small_assets, tmp_path):
    small_assets.append(DataError("pip could not download it", "lossbook fetch toy"))
    assert sentence(invoke("fetch"), 1) == "pip could not download it; run: lossbook fetch toy"
    assert not (tmp_path / "cache" / "toy").exists()


def test_an_interrupted_fetch_is_code_130_and_leaves_nothing(small_assets, tmp_path):
    small_assets.append(KeyboardInterrupt())
    message = sentence(invoke("fetch"), 130)
    assert message == "the fetch was interrupted and nothing half-written was left; run: lossbook fetch toy"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".toy.lock"]


def test_a_cache_under_a_file_is_one_sentence(small_assets, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOSSBOOK_CACHE", str(tmp_path / "file" / "cache"))
    assert sentence(invoke("fetch"), 1).endswith("run: lossbook fetch toy")


def test_an_unexpected_error_is_one_sentence_and_a_traceback_only_with_debug(small_assets, monkeypatch):
    monkeypatch.delenv(cli.DEBUG, raising=False)
    small_assets.append(RuntimeError("two\nlines"))
    message = sentence(invoke("fetch"), 1)
    assert message == "stopped by RuntimeError: two lines (for the traceback, run it again with --debug)"
    small_assets.append(RuntimeError("shown"))
    monkeypatch.setenv(cli.DEBUG, "1")
    result = invoke("fetch")
    assert isinstance(result.exception, RuntimeError) and result.exit_code == 1


@pytest.mark.parametrize("words", [["--debug", "list", "--json"], ["list", "--json", "--debug"]])
def test_debug_is_accepted_before_and_after_the_command(words, capsys, monkeypatch):
    monkeypatch.setenv(cli.DEBUG, "0")
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 0 and json.loads(capsys.readouterr().out)[0]["number"] == 1


def test_python_dash_m_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "lossbook", "run", "99"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("lossbook: there is no chapter '99'; written chapters:")


def test_bench_is_mounted():
    assert "cce" in invoke("bench", "--help").output


def test_bench_that_cannot_be_imported_says_so():
    hide = "import sys\nsys.modules['lossbook.bench'] = None\n"
    code = hide + "from lossbook.cli import main\nmain(['bench', 'cce', '--n=5'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("lossbook: the benchmarks cannot be imported")
