"""What exists to be chosen from: families, recipes, geometries, variants, engines and faults.

Each but a geometry is one file, so the folders are the catalogue and nothing is registered twice. The files run inside
cells and import the libraries under test there; the host only looks at their names and reads the few literal tuples it
needs from their syntax trees. Nothing is imported, so planning stays independent of torch and of the worker.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import HarnessError

MODEL_TYPE = re.compile("[a-z][a-z0-9_]*")
"""What names of families look like that no file describes: transformers' model types. Whether a stack knows one is for
the stack to say."""

PUBLISHED = "published"
"""The variant that every family has: the layout of its published repositories."""


_PLAIN_BATCHES = {"texts": "equal", "packing": False, "accumulation": 1, "checkpointing": False}
"""What a recipe says of its batches unless it says otherwise, as ``harness.worker.recipes.recipe`` has it."""


@dataclass(frozen=True, kw_only=True)
class RecipeFacts:
    """What a recipe says of its cells, whatever a worker observes.

    Attributes:
        kinds: what may get a LoRA; a family may lack some of it.
        quantized: whether the base is quantised while it is trained on.
        geometry: the preset of its cells unless one is asked for; None: the default.
        plain_batches: whether a step is one batch of rows of one length, each a sequence, computed once.
        resumed: whether training is resumed from a checkpoint, too.
        per_expert: whether the adapter is loaded once more with a pair for every expert's Linear.
        as_written: whether it says what a user writes, of which a stack may make less than was meant.
        more_than_weights: whether biases are trained, or the vocabulary is resized.
    """

    kinds: tuple[str, ...]
    quantized: bool
    geometry: str | None = None
    plain_batches: bool = True
    resumed: bool = False
    per_expert: bool = False
    as_written: bool = False
    more_than_weights: bool = False


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Every name a configuration or a command may use.

    ``variants`` maps a family to its checkpoint variants, ``published`` first. A family that is not a key has only
    ``published``.
    """

    families: tuple[str, ...]
    recipes: tuple[str, ...]
    geometries: tuple[str, ...]
    variants: Mapping[str, tuple[str, ...]]
    facts_of: Mapping[str, RecipeFacts] = field(default_factory=dict)
    """What each recipe says of its cells."""
    engines: tuple[str, ...] = ()
    """What can merge."""
    faults: tuple[str, ...] = ()
    """What can be broken on purpose."""

    def variants_of(self, family: str) -> tuple[str, ...]:
        """Return the checkpoint variants that ``family`` has, ``published`` first."""
        return self.variants.get(family, (PUBLISHED,))

    def is_described(self, family: str) -> bool:
        """Say whether a family has a file. Another's smallest form is derived from what a stack knows of it."""
        return family in self.families

    def geometry_of(self, recipe: str) -> str | None:
        """Return the geometry of a recipe's cells unless one is asked for; None: the default."""
        return self.facts_of[recipe].geometry if recipe in self.facts_of else None

    @property
    def all_variants(self) -> tuple[str, ...]:
        """Every variant that some family has, ``published`` first."""
        return tuple(dict.fromkeys((PUBLISHED, *(name for names in self.variants.values() for name in names))))


def read_catalogue(package: Path | None = None) -> Catalogue:
    """Read the catalogue from the files of the ``harness`` package.

    A family is a module under ``worker/checkpoints/families`` that defines ``build``. It offers the variants of its own
    ``VARIANTS``, written there or imported from ``checkpoints/variants.py``. A recipe is a module under
    ``worker/recipes`` that defines ``RECIPE``. An engine is one under ``engines`` that defines ``ENGINE``, a fault one
    in a folder of ``faults`` that defines ``FAULT``. In their names underscores become dashes.

    Args:
        package: the package's folder; None for the one this module belongs to.

    Raises:
        HarnessError: a file that the catalogue is read from is absent or does not hold the literal it should.
    """
    root = package or Path(__file__).resolve().parents[1]
    worker = root / "worker"
    checkpoints = worker / "checkpoints"
    families = _members(checkpoints / "families", "build")
    variants = {name: _variants(tree, checkpoints) for name, tree in families.items() if "VARIANTS" in _names(tree)}
    recipes = _dashed(worker / "recipes", "RECIPE")
    return Catalogue(
        families=tuple(families),
        recipes=tuple(sorted(recipes)),
        facts_of={name: _recipe_facts(tree, worker / "recipes") for name, tree in recipes.items()},
        geometries=_literal_names(checkpoints / "geometry.py", "PRESETS"),
        variants=variants,
        engines=tuple(sorted(_dashed(root / "engines", "ENGINE"))),
        faults=tuple(sorted(name for folder in _folders(root / "faults") for name in _dashed(folder, "FAULT"))),
    )


def _folders(folder: Path) -> list[Path]:
    """Return the packages in a folder that have something in them."""
    return sorted({path.parent for path in folder.glob("*/*.py") if path.name != "__init__.py"})


def _dashed(folder: Path, defining: str) -> dict[str, ast.Module]:
    """Return the members of a folder by the names that a command line knows them by."""
    return {name.replace("_", "-"): tree for name, tree in _members(folder, defining).items()}


def _members(folder: Path, defining: str) -> dict[str, ast.Module]:
    """Return the modules in ``folder`` that define the name ``defining``, parsed, by name; the others are helpers."""
    trees = {path.stem: _parse(path) for path in sorted(folder.glob("*.py"))}
    members = {name: tree for name, tree in trees.items() if defining in _names(tree)}
    if not members:
        raise _broken(folder, f"holds no module that defines {defining}")
    return members


def _parse(path: Path) -> ast.Module:
    if not path.is_file():
        raise _broken(path, "is absent")
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _names(tree: ast.Module) -> dict[str, ast.stmt]:
    """Return what a module defines or imports by name at its top level, and the statement that does."""
    names: dict[str, ast.stmt] = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=targets):
                names |= {target.id: node for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()) | ast.FunctionDef(name=name):
                names[name] = node
            case ast.ImportFrom(names=imported):
                names |= {alias.asname or alias.name: node for alias in imported}
    return names


def _recipe_facts(recipe: ast.Module, folder: Path) -> RecipeFacts:
    """Return what a recipe's module says by literals, its own or those of the recipe that it replaces some of."""
    given = _recipe_arguments(recipe, folder)
    quantization, geometry = given.get("quantization"), given.get("geometry")
    try:
        defaults = {
            **_PLAIN_BATCHES,
            "resumed": False,
            "per_expert": False,
            "target_modules": (),
            "target_parameters": (),
            "bias": "none",
            "new_tokens": 0,
        }
        said = {name: ast.literal_eval(given[name]) if name in given else plain for name, plain in defaults.items()}
        return RecipeFacts(
            kinds=tuple(map(str, ast.literal_eval(given["kinds"]))),
            quantized=quantization is not None and not _is_none(quantization),
            geometry=None if geometry is None else str(ast.literal_eval(geometry)),
            plain_batches=all(said[name] == plain for name, plain in _PLAIN_BATCHES.items()),
            resumed=bool(said["resumed"]),
            per_expert=bool(said["per_expert"]),
            as_written=bool(said["target_modules"] or said["target_parameters"]),
            more_than_weights=said["bias"] != "none" or bool(said["new_tokens"]),
        )
    except (KeyError, ValueError) as error:
        raise _broken(folder, f"has a recipe whose kinds, geometry or batches are not literals ({error})") from None


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _recipe_arguments(recipe: ast.Module, folder: Path) -> dict[str, ast.expr]:
    """Return the arguments of ``RECIPE = Recipe(…)``, or of ``RECIPE = replace(OTHER, …)`` over those of the other."""
    names = _names(recipe)
    match names["RECIPE"]:
        case ast.Assign(value=ast.Call() as call) | ast.AnnAssign(value=ast.Call() as call):
            own = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
        case _:
            raise _broken(folder, "has a recipe that is not written as a call")
    match call:
        case ast.Call(func=ast.Name(id="Recipe")):
            return own
        case ast.Call(func=ast.Name(id="replace"), args=[ast.Name(id=other)]):
            match names.get(other):
                case ast.ImportFrom(module=str(module)):
                    return _recipe_arguments(_parse(folder / f"{module.rpartition('.')[2]}.py"), folder) | own
    raise _broken(folder, "has a recipe that is neither Recipe(…) nor replace(OTHER, …)")


def _variants(family: ast.Module, checkpoints: Path) -> tuple[str, ...]:
    if isinstance(_names(family)["VARIANTS"], ast.ImportFrom):
        return _literal_names(checkpoints / "variants.py", "VARIANTS")
    return _literal(family, "VARIANTS", checkpoints / "families")


def _literal_names(path: Path, variable: str) -> tuple[str, ...]:
    return _literal(_parse(path), variable, path)


def _literal(tree: ast.Module, variable: str, path: Path) -> tuple[str, ...]:
    """Return the strings of the module-level tuple ``variable``."""
    match _names(tree).get(variable):
        case ast.Assign(value=ast.Tuple() as value) | ast.AnnAssign(value=ast.Tuple() as value):
            if all(isinstance(item, ast.Constant) and isinstance(item.value, str) for item in value.elts):
                return tuple(ast.literal_eval(value))
    raise _broken(path, f"does not write {variable} as a tuple of strings")


def _broken(path: Path, what: str) -> HarnessError:
    return HarnessError(f"{path} {what}: the installation is not complete.", remedy="Install moe-lora-harness again.")
