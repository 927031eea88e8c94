"""The catalogue is read from files that are never imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.matrix.catalogue import read_catalogue

FILES = {
    "../engines/__init__.py": '"""Engines."""\n',
    "../engines/reference.py": "import absent_library\nENGINE = absent_library.Engine()\n",
    "../engines/unsloth_zoo.py": "ENGINE: object = 1\n",
    "../engines/engine.py": "class Engine: ...\n",
    "../faults/base_copied.py": "import absent_library\nFAULT = 1\n",
    "../faults/fault.py": "class Fault: ...\n",
    "checkpoints/families/__init__.py": '"""Families."""\n',
    "checkpoints/families/alpha.py": "import absent_library\ndef build(geometry, variant): ...\n",
    "checkpoints/families/beta.py": "from x.variants import VARIANTS\ndef build(geometry, variant): ...\n",
    "checkpoints/families/gamma.py": 'VARIANTS: tuple[str, ...] = ("published", "own")\ndef build(g, v): ...\n',
    "checkpoints/families/helpers.py": "def rope(): ...\n",
    "checkpoints/variants.py": 'VARIANTS = ("published", "per-expert")\n',
    "checkpoints/geometry.py": 'import absent_library\nPRESETS = ("distinct", "square")\n',
    "recipes/lora.py": "import absent_library\nRECIPE = absent_library.Recipe()\n",
    "recipes/lora_experts.py": "RECIPE = 1\n",
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
    assert catalogue.recipes == ("lora", "lora-experts")
    assert catalogue.geometries == ("distinct", "square")
    assert catalogue.engines == ("reference", "unsloth-zoo")
    assert catalogue.faults == ("base-copied",)


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
    for path in (package / "worker" / "recipes").glob("lora*.py"):
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
