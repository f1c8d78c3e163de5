"""Open the notebooks in JupyterLab with the kernel of ``.venv`` (``make lab``)."""

from __future__ import annotations

import os
import subprocess
import sys

from lossbook.site.build import ROOT


def command(arguments: list[str]) -> list[str]:
    """The command that starts JupyterLab.

    Args:
        arguments: More arguments for it.

    Returns:
        The command.
    """
    start = [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={ROOT}",
        "--LabApp.default_url=/lab/tree/notebooks",
    ]
    if os.geteuid() == 0:
        # Containers run as root, where Jupyter asks to be told that this is meant.
        start.append("--allow-root")
    return [*start, *arguments]


def main() -> int:
    """Register the kernel inside the environment and start JupyterLab."""
    kernel = [sys.executable, "-m", "ipykernel", "install", "--sys-prefix", "--name", "python3"]
    done = subprocess.run(
        [*kernel, "--display-name", "Python 3 (Lossbook)"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"the kernel could not be registered in {sys.prefix}: {done.stderr.strip()}", file=sys.stderr)
        return 1
    # A kernel of the same name in the user's home folder must not take its place.
    environ = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1"}
    try:
        return subprocess.run(command(sys.argv[1:]), cwd=ROOT, env=environ, check=False).returncode
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
