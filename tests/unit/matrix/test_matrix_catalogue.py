"""The catalogue is read from files that are never imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.matrix.catalogue import RecipeFacts, read_catalogue
from harness.worker.recipes.recipe import recipe

FILES = {
    "../engines/__init__.py": '"""Engines."""\n',
    "../engines/reference.py": "import absent_library\nENGINE = absent_library.Engine()\n",
    "../engines/unsloth_zoo.py": "ENGINE: object = 1\n",
    "../engines/engine.py": "class Engine: ...\n",
    "../faults/merged/__init__.py": '"""Faults."""\n',
    "../faults/merged/base_copied.py": "import absent_library\nFAULT = 1\n",
    "../faults/merged/helpers.py": "def plant(): ...\n",
    "../faults/training/__init__.py": '"""Faults."""\n',
    "../faults/training/steps_skipped.py": "FAULT: object = 1\n",
    "../faults/fault.py": "class Fault: ...\n",
    "checkpoints/families/__init__.py": '"""Families."""\n',
    "checkpoints/families/alpha.py": "import absent_library\ndef build(geometry, variant): ...\n",
    "checkpoints/families/beta.py": "from x.variants import VARIANTS\ndef build(geometry, variant): ...\n",
    "checkpoints/families/gamma.py": 'VARIANTS: tuple[str, ...] = ("published", "own")\ndef build(g, v): ...\n',
    "checkpoints/families/helpers.py": "def rope(): ...\n",
    "checkpoints/variants.py": 'VARIANTS = ("published", "per-expert")\n',
    "checkpoints/geometry.py": 'import absent_library\nPRESETS = ("distinct", "square")\n',
    "recipes/lora.py": "import absent_library\nRECIPE = Recipe(kinds=('attention', 'expert'), quantization=None)\n",
    "recipes/lora_experts.py": "from x.recipes.lora import RECIPE as L\nRECIPE: R = replace(L, kinds=('expert',))\n",
    "recipes/qlora4.py": "RECIPE = Recipe(kinds=('expert', 'dense'), geometry='blocks', quantization=Quant(bits=4))\n",
    "recipes/qlora_shimmed.py": "from x.recipes.qlora4 import RECIPE as Q\nRECIPE = replace(Q, shims=('a',))\n",
    "recipes/recipe.py": "class Recipe: ...\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "worker" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_members_are_the_files_that_define_what_a_member_defines(package: Path) -> None:
    catalogue = read_catalogue(package)

    assert catalogue.families == ("alpha", "beta", "gamma")
    assert catalogue.recipes == ("lora", "lora-experts", "qlora-shimmed", "qlora4")
    assert catalogue.geometries == ("distinct", "square")
    assert catalogue.engines == ("reference", "unsloth-zoo")
    assert catalogue.faults == ("base-copied", "steps-skipped")


def test_what_a_recipe_says_of_its_cells_is_read_also_where_it_changes_another(package: Path) -> None:
    quantized = RecipeFacts(kinds=("expert", "dense"), quantized=True, geometry="blocks")

    assert read_catalogue(package).facts_of == {
        "lora": RecipeFacts(kinds=("attention", "expert"), quantized=False),
        "lora-experts": RecipeFacts(kinds=("expert",), quantized=False),
        "qlora4": quantized,
        "qlora-shimmed": quantized,
    }


def test_what_is_read_of_the_shipped_recipes_is_what_they_are() -> None:
    """The worker imports them, the host does not; they import no library."""
    for name, facts in read_catalogue().facts_of.items():
        known = recipe(name)

        assert facts.kinds == known.kinds
        assert facts.quantized == (known.quantization is not None)
        assert (facts.geometry or "distinct") == known.geometry
        assert (facts.plain_batches, facts.resumed) == (known.plain_batches, known.resumed)
        assert facts.as_written == known.as_written


@pytest.mark.parametrize("text", ["RECIPE = 1", "RECIPE = made()", "RECIPE = Recipe()", "RECIPE = Recipe(kinds=KINDS)"])
def test_a_recipe_that_cannot_be_read_is_an_error(package: Path, text: str) -> None:
    (package / "worker" / "recipes" / "odd.py").write_text(text)

    with pytest.raises(HarnessError, match="recipes has a recipe"):
        read_catalogue(package)


def test_a_family_offers_the_variants_it_names_or_imports(package: Path) -> None:
    catalogue = read_catalogue(package)

    assert catalogue.variants_of("alpha") == ("published",)
    assert catalogue.variants_of("beta") == ("published", "per-expert")
    assert catalogue.variants_of("gamma") == ("published", "own")
    assert catalogue.all_variants == ("published", "per-expert", "own")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("checkpoints/geometry.py", "PRESETS = tuple(sorted(_PRESETS))\n"),
        ("checkpoints/geometry.py", "PRESETS = ('distinct', 3)\n"),
        ("checkpoints/geometry.py", "OTHER = ('distinct',)\n"),
        ("checkpoints/geometry.py", None),
        ("checkpoints/variants.py", None),
    ],
)
def test_a_broken_installation_names_the_file(package: Path, name: str, text: str | None) -> None:
    path = package / "worker" / name
    path.unlink() if text is None else path.write_text(text, encoding="utf-8")

    with pytest.raises(HarnessError, match=Path(name).name):
        read_catalogue(package)


def test_a_folder_without_members_is_an_error(package: Path) -> None:
    for path in (package / "worker" / "recipes").glob("*lora*.py"):
        path.unlink()

    with pytest.raises(HarnessError, match="no module that defines RECIPE"):
        read_catalogue(package)


def test_planning_imports_neither_the_worker_nor_torch() -> None:
    program = (
        "import sys; import harness.matrix.plan, harness.matrix.verdict, harness.matrix.schema as s;"
        "from harness.matrix.catalogue import read_catalogue; read_catalogue();"
        "print([m for m in sys.modules if m.startswith(('torch', 'harness.worker', 'harness.merge', 'pandas'))])"
    )
    root = Path(__file__).resolve().parents[3]
    shown = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)

    assert shown.stdout.strip() == "[]"
