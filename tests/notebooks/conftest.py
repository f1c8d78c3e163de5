"""How nbval sees the chapters, whose outputs are committed without execution counts."""

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.notebook)
            # nbval takes a cell without a count for one that was never run, and compares nothing.
            item.cell.execution_count = item.cell.execution_count or 1
            # It also runs cells without history, where IPython overlooks the semicolon that silences a last value.
            if item.cell.source.rstrip().endswith(";"):
                item.cell.source = item.cell.source.rstrip() + " None"
