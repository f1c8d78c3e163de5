"""The built book, its offline copy served on this machine, and a browser to open it with."""

import contextlib
import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from lossbook.site import build, offline

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def chromium():
    """Path of the system's Chromium, or None."""
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and "html_book" in item.fixturenames:
            item.add_marker(pytest.mark.book)


def pytest_runtest_setup(item):
    if item.get_closest_marker("browser") and os.environ.get("CI") == "true" and not chromium():
        pytest.fail("continuous integration must have a browser: apt-get install chromium", pytrace=False)


@pytest.fixture(scope="session")
def html_book(tmp_path_factory, worker_id):
    """Folder of the HTML book, built once in a run."""
    done = tmp_path_factory.getbasetemp()
    done = (done if worker_id == "master" else done.parent) / "book-is-built"
    build.HTML.parent.mkdir(exist_ok=True)
    with FileLock(build.HTML.parent / ".book.lock"):
        if os.environ.get("LOSSBOOK_BOOK_IS_BUILT") != "1" and not done.exists():
            build.build()
            with contextlib.suppress(offline.OfflineError):
                offline.make_offline()
            done.touch()
    return build.HTML


@pytest.fixture(scope="session")
def offline_book(html_book):
    """Folder of the offline copy; skipped where there is no npm to make it with."""
    if not (offline.OFFLINE / "index.html").is_file():
        if os.environ.get("CI") == "true":
            pytest.fail("continuous integration must have npm: apt-get install npm", pytrace=False)
        pytest.skip("no offline book, it needs npm; install Node.js, then run: make offline-book")
    return offline.OFFLINE


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def end_headers(self):
        self.send_header("LinkChecker", "need not spare this server")
        super().end_headers()


@pytest.fixture(scope="session")
def site(offline_book):
    """Address of the offline copy, served on the loopback interface."""
    handler = functools.partial(_QuietHandler, directory=str(offline_book))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium of the system."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        yield opened
        opened.close()
