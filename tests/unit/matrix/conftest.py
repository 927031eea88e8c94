"""A small matrix of invented families, so that these tests say what planning does and not what is shipped today."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.matrix.catalogue import Catalogue
from harness.matrix.config import MatrixConfig, load_config

BANDS = """
kl_max = 1e-9
adapter_reload_kl_max = 1e-9
logprob_max = 1e-3
samples_min = 1.0
exact_min = 0.9
ulp_max = 2.0
signal_min = 0.1
near_tie_epsilon = 1e-5
clear_min = 0.5
definition_max = 1e-3
paths_max = 1e-4
"""

SMALL = f"""
schema = 1
families = ["alpha", "beta"]
recipes = ["lora", "lora-experts"]

[pins]
torch = "2.13.0"
datasets = "5.2.0"

[[overrides]]
when = "transformers<5"
pins = {{ datasets = "5.0.1" }}
reason = "older hub client"

[[stacks]]
transformers = "5.5.0"
peft = "0.19.1"
trl = "0.25.1"

[[stacks]]
transformers = "4.57.6"
peft = "0.19.1"
trl = "0.25.1"

[[stacks]]
transformers = "5.23.0"
peft = "0.21.2"
trl = "1.16.0"
python = "3.12"
pins = {{ torch = "2.12.0" }}

[profiles.default]
description = "lora everywhere"
cells = [{{ recipes = ["lora"] }}, {{ recipes = ["lora*"], stacks = ["tf5.5.0-*"] }}]

[profiles.nightly]
description = "everything"
cells = [{{ recipes = ["*"], geometries = ["*"], dtypes = ["*"], variants = ["*"] }}]

[bands.float32]
{BANDS}
[bands.bf16]
{BANDS}
"""


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue(
        families=("alpha", "beta"),
        recipes=("lora", "lora-experts"),
        geometries=("distinct", "square"),
        variants={"beta": ("published", "fused")},
        engines=("reference", "peft"),
        faults=("base-copied",),
    )


@pytest.fixture
def load(tmp_path: Path, catalogue: Catalogue) -> Callable[..., MatrixConfig]:
    """Write the small matrix, with one piece of its text replaced if asked, and load it."""

    def load(old: str = "", new: str = "") -> MatrixConfig:
        assert old in SMALL
        path = tmp_path / "matrix.toml"
        path.write_text(SMALL.replace(old, new, 1) if old else SMALL, encoding="utf-8")
        return load_config(path, catalogue)

    return load


@pytest.fixture
def config(load: Callable[..., MatrixConfig]) -> MatrixConfig:
    return load()
