"""`make lab` starts JupyterLab on the notebooks, with a kernel that runs the installed package."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from lossbook.site import lab

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=", "--ServerApp.password="]
    environ = {**os.environ, "JUPYTER_RUNTIME_DIR": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(lab.command(options), cwd=ROOT, env=environ, stdout=log, stderr=log)
    yield f"http://127.0.0.1:{port}", process, tmp_path / "log"
    process.terminate()
    process.wait(timeout=30)


def get(address):
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read()


def test_lab_serves_the_notebooks_and_the_kernel(server):
    address, process, log = server
    for _ in range(120):
        assert process.poll() is None, log.read_text()
        try:
            get(f"{address}/api/status")
            break
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    listed = json.loads(get(f"{address}/api/contents/notebooks"))["content"]
    assert {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} <= {item["name"] for item in listed}
    kernel = json.loads(get(f"{address}/api/kernelspecs"))["kernelspecs"]["python3"]
    assert Path(kernel["spec"]["argv"][0]).name in ("python", "python3", Path(sys.executable).name)
    assert b"jupyter" in get(f"{address}/lab/tree/notebooks").lower()
