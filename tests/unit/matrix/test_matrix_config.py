"""Reading ``matrix.toml``: what it means, and what each mistake in it is answered with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from harness.contract.cell_fields import Dtype
from harness.errors import ConfigurationError, UnknownNameError
from harness.matrix.catalogue import Catalogue
from harness.matrix.config import Bands, Limits, MatrixConfig, load_config

Load = Callable[..., MatrixConfig]


def test_pins_come_from_the_table_then_overrides_then_the_stack(config: MatrixConfig) -> None:
    first, old, newest = config.declared

    assert first.pins == {"torch": "2.13.0", "datasets": "5.2.0"}
    assert old.pins == {"torch": "2.13.0", "datasets": "5.0.1"}
    assert newest.pins == {"torch": "2.12.0", "datasets": "5.2.0"}


def test_what_a_stack_declares_for_itself_does_not_show_in_ids(config: MatrixConfig) -> None:
    newest = config.declared[2]

    assert newest.extra_pins == ()
    assert newest.id == "tf5.23.0-peft0.21.2-trl1.16.0"
    assert newest.python == "3.12"


def test_a_stacks_own_pin_outranks_an_override(load: Load) -> None:
    config = load('transformers = "4.57.6"', 'transformers = "4.57.6"\npins = { datasets = "4.9.0" }')

    assert config.declared[1].pins["datasets"] == "4.9.0"


def test_a_later_override_outranks_an_earlier_one(load: Load) -> None:
    later = (
        '[[overrides]]\nwhen = "transformers<5, torch==2.13"\npins = { datasets = "4.8.0" }\nreason = "r"\n[[stacks]]'
    )
    config = load("[[stacks]]", later)

    assert config.declared[1].pins["datasets"] == "4.8.0"


def test_versions_are_written_as_pep_440_writes_them(load: Load) -> None:
    assert load('trl = "1.16.0"', 'trl = "v1.16.0-rc1"').declared[2].trl == "1.16.0rc1"


MISTAKES = [
    # what stands in the file, what is written instead, the key path that is named, what is suggested
    ('peft = "0.21.2"', 'peft = "0.21.x"', "stacks.2.peft", "'0.21'"),
    ('transformers = "5.23.0"', "transformers = 5.23", "stacks.2.transformers", '"5.23"'),
    ('trl = "1.16.0"', 'tlr = "1.16.0"', "stacks.2: unknown key 'tlr'", "'trl'"),
    ('python = "3.12"', 'pyhton = "3.12"', "stacks.2: unknown key", "'python'"),
    ('python = "3.12"', 'python = "3"', "stacks.2.python", "pattern"),
    ('["alpha", "beta"]', '["alpha", "bata"]', "families.1", "'beta'"),
    ('["alpha", "beta"]', '["alpha", "alpha"]', "families", "alpha"),
    ('["lora", "lora-experts"]', '["lora", "lora-expert"]', "recipes.1", "'lora-experts'"),
    ('recipes = ["lora"]', 'recipes = ["lra"]', "profiles.default.cells.0.recipes.0", "'lora'"),
    ('recipes = ["lora*"]', 'recipes = ["lora", "q*"]', "profiles.default.cells.1.recipes.1", "lora-experts"),
    ('stacks = ["tf5.5.0-*"]', 'stacks = ["tf5.5.1-*"]', "profiles.default.cells.1.stacks.0", "tf5.5.0-peft0.19.1"),
    ('recipes = ["lora"]', 'recipes = ["lora"], geometries = ["sqare"]', "cells.0.geometries.0", "'square'"),
    ('recipes = ["lora"]', 'recipes = ["lora"], dtypes = ["bfloat16"]', "cells.0.dtypes.0", "'bf16'"),
    ('recipes = ["lora"]', 'recipes = ["lora"], variants = ["fussed"]', "cells.0.variants.0", "'fused'"),
    ('recipes = ["lora"]', 'recipes = ["lora"], engines = ["referense"]', "cells.0.engines.0", "'reference'"),
    ('recipes = ["lora"]', 'recipe = ["lora"]', "profiles.default.cells.0", "'recipes'"),
    ('recipes = ["lora"]', "recipes = []", "profiles.default.cells.0.recipes", "at least 1"),
    ("[bands.bf16]", "[bands.fp16]", "bands.fp16", "'bf16'"),
    ("kl_max = 1e-9", "kl_max = 0", "bands.float32.kl_max", "greater than 0"),
    ("kl_max = 1e-9", "kl_max = true", "bands.float32.kl_max", "number"),
    ("kl_max = 1e-9", 'kl_max = "1e-9"', "bands.float32.kl_max", "number"),
    ("signal_min", "signal_mni", "bands.float32: unknown key", "'signal_min'"),
    ("[pins]", "[pin]", "unknown key 'pin'", "'pins'"),
    ('torch = "2.13.0"', 'troch = "2.13.0"', "pins: torch must be pinned", "'troch'"),
    ('torch = "2.13.0"', 'torch = "2.13.0"\npeft = "0.19.1"', "pins.peft", "stack itself"),
    ('datasets = "5.2.0"', 'Huggingface_Hub = "1.0"', "pins.Huggingface_Hub", "'huggingface-hub'"),
    ('datasets = "5.2.0"', 'datasets = "five"', "pins.datasets", "'5.5.0'"),
    ('when = "transformers<5"', 'when = "transformers is old"', "overrides.0.when", "'peft>=0.19.1'"),
    ('transformers = "4.57.6"', 'transformers = "5.5.0"', "stacks.1", "stacks.0"),
    ("schema = 1", "schema = 2", "schema", "1"),
]


@pytest.mark.parametrize(("old", "new", "path", "suggestion"), MISTAKES, ids=[f"{path}" for _, _, path, _ in MISTAKES])
def test_a_mistake_is_named_by_its_key_path_with_what_is_right(
    load: Load, old: str, new: str, path: str, suggestion: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(old, new)

    assert f"matrix.toml: {path}" in caught.value.message or f".{path}" in caught.value.message
    assert suggestion in caught.value.message + (caught.value.remedy or "")
    assert caught.value.exit_code == 2


def test_an_unknown_name_lists_the_known_ones(load: Load) -> None:
    with pytest.raises(UnknownNameError) as caught:
        load('["alpha", "beta"]', '["alpha", "betta"]')

    assert caught.value.suggestion == "beta"
    assert caught.value.remedy == "Known: alpha, beta."


def test_all_mistakes_are_reported_at_once(load: Load) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load('peft = "0.19.1"\ntrl = "0.25.1"\n\n[[stacks]]', 'peft = "x"\ntrl = "y"\n\n[[stacks]]')

    first, second = caught.value.message.splitlines()
    assert "stacks.0.peft" in first
    assert "stacks.0.trl" in second


def test_a_union_is_one_mistake(load: Load) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load("[bands.float32]", '[limits]\njobs = "all"\n[bands.float32]')

    assert caught.value.message.count("limits.jobs") == 1
    assert "'auto'" in caught.value.message


def test_a_syntax_error_shows_its_line(load: Load) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load("[profiles.default]", "[profiles.default")

    number = next(int(word.rstrip(",")) for word in caught.value.message.split("line ")[1].split())
    assert caught.value.message.endswith(f"{number} | [profiles.default")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Path.exists, "No such file"),
        (Path.mkdir, "directory"),
        (lambda path: path.write_bytes(b"schema = 1 # \xff"), "UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_configuration_error(
    tmp_path: Path, catalogue: Catalogue, make: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "matrix.toml"
    make(path)

    with pytest.raises(ConfigurationError, match=words):
        load_config(path, catalogue)


def test_a_configuration_cannot_be_changed(config: MatrixConfig) -> None:
    with pytest.raises(ValidationError):
        config.limits.memory_mb = 1


def test_an_unknown_profile_suggests_the_nearest(config: MatrixConfig) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'nightly'"):
        config.profile("nigthly")


@pytest.mark.parametrize(
    ("limits", "cores", "asked", "share"),
    [
        (Limits(), 2, None, (2, 1)),
        (Limits(), 8, 3, (3, 2)),
        (Limits(), 2, 5, (5, 1)),
        (Limits(jobs=4), 8, None, (4, 2)),
        (Limits(jobs=4), 8, 1, (1, 8)),
        (Limits(threads=3), 8, 4, (4, 3)),
    ],
)
def test_cores_are_shared_among_cells(limits: Limits, cores: int, asked: int | None, share: tuple[int, int]) -> None:
    assert limits.share(cores, jobs=asked) == share


def test_an_engine_s_bands_change_those_that_they_name_and_no_others(load: Callable[..., MatrixConfig]) -> None:
    config = load("[bands.bf16]", "[engine_bands.peft.bf16]\nkl_max = 1e-3\nexact_min = 0.5\n[bands.bf16]")
    plain = config.bands["bf16"]

    def bands(engine: str, dtype: Dtype) -> Bands:
        return config.bands_of(engine=engine, dtype=dtype, geometry="distinct")

    assert bands("peft", "bf16") == plain.model_copy(update={"kl_max": 1e-3, "exact_min": 0.5})
    assert bands("peft", "float32") == config.bands["float32"]
    assert bands("reference", "bf16") == plain


def test_a_geometry_s_bands_change_those_that_they_name_and_an_engine_s_outrank_them(
    load: Callable[..., MatrixConfig],
) -> None:
    geometry = "[geometry_bands.square.bf16]\nkl_max = 1e-2\npaths_max = 1e-3\n"
    config = load("[bands.bf16]", f"[engine_bands.peft.bf16]\nkl_max = 1e-3\n{geometry}[bands.bf16]")
    plain = config.bands["bf16"]

    def bands(engine: str, geometry: str) -> Bands:
        return config.bands_of(engine=engine, dtype="bf16", geometry=geometry)

    assert bands("reference", "distinct") == plain
    assert bands("reference", "square") == plain.model_copy(update={"kl_max": 1e-2, "paths_max": 1e-3})
    assert bands("peft", "square") == plain.model_copy(update={"kl_max": 1e-3, "paths_max": 1e-3})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[engine_bands.peft.bf16]\nkl_maximum = 1", "engine_bands.peft.bf16.kl_maximum"),
        ("[engine_bands.peft.bf16]\nsamples_min = 2", "engine_bands.peft.bf16.samples_min"),
        ("[engine_bands.peft.bf16]\nkl_max = true", "engine_bands.peft.bf16.kl_max"),
        ('[engine_bands.peft.bf16]\nkl_max = "1e-9"', "engine_bands.peft.bf16.kl_max"),
        ("[engine_bands.peft.bf16]\nsignal_min = 1e-9", "engine_bands.peft.bf16.signal_min"),
        ("[engine_bands.peft.bf16]\nadapter_reload_kl_max = 1", "engine_bands.peft.bf16.adapter_reload_kl_max"),
        ("[engine_bands.peft.bf16]\npaths_max = 1", "engine_bands.peft.bf16.paths_max"),
        ("[engine_bands.peft.fp8]\nkl_max = 1", "engine_bands.peft.fp8"),
        ("[geometry_bands.square.bf16]\nkl_maximum = 1", "geometry_bands.square.bf16.kl_maximum"),
        ("[geometry_bands.square.bf16]\nsamples_min = 2", "geometry_bands.square.bf16.samples_min"),
        ("[geometry_bands.sqare.bf16]\nkl_max = 1", "geometry_bands: unknown geometry 'sqare'"),
        ("[engine_bands.pefd.bf16]\nkl_max = 1", "engine_bands: unknown engine 'pefd'"),
    ],
)
def test_an_engine_s_bands_are_read_as_strictly_as_the_others(
    load: Callable[..., MatrixConfig], text: str, words: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        load("[bands.bf16]", f"{text}\n[bands.bf16]")

    assert words in error.value.message
