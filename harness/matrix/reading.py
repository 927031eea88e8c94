"""From a TOML file to a validated model, with errors a person can act on.

Both configuration files go through here. A syntax error shows its line. A value that a model rejects is named by its
key path (``stacks.3.peft``). An unknown key or name comes with the nearest one that would have been right. All problems
of a file are reported at once, because a user who mistyped one version has often mistyped two.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness.errors import ConfigurationError, UnknownNameError

Model = TypeVar("Model", bound=BaseModel)
Key = str | int


def read_model(path: Path, model: type[Model]) -> Model:
    """Read ``path`` and validate it as ``model``.

    Raises:
        UnknownNameError: its one problem is a key or a name that nothing has.
        ConfigurationError: it cannot be read, is not TOML, or holds values that the model rejects.
    """
    data = _read_toml(path)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise describe(error, data, model, str(path)) from None


def describe(error: ValidationError, data: object, model: type[BaseModel], label: str | None) -> ConfigurationError:
    """Turn pydantic's errors into one of ours.

    Args:
        error: what validating ``data`` raised.
        data: the input, walked to tell keys from the names of pydantic's own union branches.
        model: what ``data`` was validated as; its fields are the known keys.
        label: the file's name, first in the message; None where the keys are options of a command.
    """
    by_path: dict[tuple[Key, ...], list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        by_path.setdefault(_keys_in(data, detail), []).append(detail)
    found = [_describe_one(details, keys, model, label) for keys, details in by_path.items()]
    if len(found) == 1:
        return found[0]
    remedies = dict.fromkeys(problem.remedy for problem in found if problem.remedy)
    return ConfigurationError("\n".join(problem.message for problem in found), remedy=" ".join(remedies) or None)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read: {error.strerror or error}.", remedy="See that it is a file that you may read."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path}: not UTF-8, which TOML requires (byte {error.start}).", remedy="Save it as UTF-8."
        ) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            f"{path}: not valid TOML: {error}.{_quote_line(text, str(error))}",
            remedy="Correct the line: https://toml.io.",
        ) from None
    except RecursionError:
        raise ConfigurationError(f"{path}: nested too deeply to be read.", remedy="Write it flatter.") from None


KEYS = "Every key is in docs/reference/matrix.schema.json and expectations.schema.json."


def _quote_line(text: str, message: str) -> str:
    """Return the offending source line under the message, where the parser said which one it is."""
    at = re.search(r"at line (\d+)", message)
    lines = text.splitlines()
    number = int(at.group(1)) if at else 0
    return f"\n  {number} | {lines[number - 1]}" if 0 < number <= len(lines) else ""


def _keys_in(data: object, detail: ErrorDetails) -> tuple[Key, ...]:
    """Return the part of an error's location that consists of keys of the input (a missing key counts as one)."""
    keys: list[Key] = []
    here: Any = data
    location = detail["loc"]
    for depth, key in enumerate(location):
        if isinstance(here, list) and isinstance(key, int):
            here = here[key]
        elif isinstance(here, dict) and key in here:
            here = here[str(key)]
        elif detail["type"] != "missing" or depth < len(location) - 1:
            break
        keys.append(key)
    return tuple(keys)


def _dotted(keys: Sequence[Key]) -> str:
    return ".".join(str(key) for key in keys)


def _describe_one(
    details: Sequence[ErrorDetails], keys: tuple[Key, ...], model: type[BaseModel], label: str | None
) -> ConfigurationError:
    """Describe what is wrong at one key path. Several details are the branches of a union, none of which fitted."""
    detail = details[0]
    value, kind = detail["input"], detail["type"]
    if kind in {"extra_forbidden", "missing"}:
        parent = f"{label}: {_dotted(keys[:-1])}" if len(keys) > 1 else label
        if kind == "missing":
            return ConfigurationError(f"{parent}: the key {str(keys[-1])!r} is missing.", remedy=f"Add it. {KEYS}")
        return UnknownNameError("key", str(keys[-1]), _known_keys(model, keys[:-1]), where=parent)
    option = f"--{_dotted(keys).replace('_', '-')}"
    place = option if label is None else f"{label}: {_dotted(keys)}" if keys else label
    counting = " (entries are counted from 0)" if any(isinstance(key, int) for key in keys) else ""
    if len(details) == 1 and kind == "literal_error" and isinstance(value, str):
        choices = re.findall(r"'([^']*)'", str(detail.get("ctx", {}).get("expected", "")))
        what = "key" if detail["loc"][-1] == "[key]" else "value"
        return UnknownNameError(what, value, choices, where=place)
    if kind == "string_type" and isinstance(value, int | float) and not isinstance(value, bool):
        return ConfigurationError(f'{place}: {value} must stand in quotes: "{value}"{counting}.')
    if kind == "value_error":
        said = str(detail["ctx"]["error"])
        return ConfigurationError(f"{place}: {said}{counting}{'' if said.endswith('?') and not counting else '.'}")
    shown = "" if isinstance(value, dict | list) else f"{value!r}: "
    wanted = ", or: ".join(item["msg"] for item in details)
    return ConfigurationError(f"{place}: {shown}{wanted}{counting}.")


def _known_keys(model: type[BaseModel], keys: Sequence[Key]) -> list[str]:
    """Return the keys that the table at ``keys`` may have."""
    here: Any = model
    for key in keys:
        if isinstance(here, type) and issubclass(here, BaseModel):
            fields = here.model_fields
            here = next(field.annotation for name, field in fields.items() if key in {name, field.alias})
        else:
            # A list's entries are the first argument of tuple[X, ...], a table's values the second of dict[str, X].
            here = get_args(here)[0 if get_origin(here) is tuple else 1]
    return [field.alias or name for name, field in here.model_fields.items()]
