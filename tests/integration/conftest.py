"""Makes the fixtures of ``real_stacks`` known to every test here, and keeps tests that share one in one worker."""

from __future__ import annotations

import pytest
from real_stacks import STACKS, matrix_run

__all__ = ["matrix_run"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests of what ran once: those of the matrix run, and those of one file about one stack."""
    for item in items:
        if not isinstance(item, pytest.Function) or item.get_closest_marker("integration") is None:
            continue
        if "matrix_run" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("matrix_run"))
        elif hasattr(item, "callspec"):
            for stack in STACKS.intersection(map(str, item.callspec.params.values())):
                item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} on {stack}"))
