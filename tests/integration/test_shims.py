"""The one shim, on the stack that it is for: without it no adapter is loaded, with it a right one; then it is gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_stacks import NO_RELOAD, ask

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def test_an_adapter_loads_within_the_shim_and_only_there(tmp_path: Path) -> None:
    (answer,) = ask(NO_RELOAD, Path(__file__).with_name("shim_program.py"), [], tmp_path)

    assert "'distributed_operation'" in answer["alone"]
    assert answer["applied"] == ["weight-converter-arguments"]
    assert answer["replaced"]
    assert answer["difference"] == 0
    assert "would drop what means something" in answer["refused"]
    assert answer["gone"]
    assert answer["again"] == answer["alone"]
