"""Where the two configuration files are.

It is what the user names, else what lies in the working directory, else what was shipped.
"""

from __future__ import annotations

from pathlib import Path

from harness.errors import ConfigurationError

CONFIG_NAME = "matrix.toml"
EXPECTATIONS_NAME = "expectations.toml"


def find_config(given: Path | None = None, *, name: str = CONFIG_NAME) -> Path:
    """Return the configuration file: the one given, else that of the working directory, else the one that was shipped.

    Args:
        given: what the user asked for, or None.
        name: the file's name, ``matrix.toml`` or ``expectations.toml``.

    Raises:
        ConfigurationError: the given file is absent.
    """
    if given is not None:
        if not given.is_file():
            raise ConfigurationError(
                f"{given}: {_not_a_file(given)}.", remedy="Give the path of one, or leave the option out."
            )
        return given
    package = Path(__file__).resolve().parent
    # A wheel carries the files under defaults/; a source checkout has them in its root, and only there.
    places = (Path.cwd() / name, package / "defaults" / name, package.parents[1] / name)
    for place in places:
        if place.is_file():
            return place
    raise ConfigurationError(f"no {name} in the working directory, and none was installed.", remedy="Give its path.")


def _not_a_file(given: Path) -> str:
    return "it is a pipe, a device or a directory, and no file" if given.exists() else "there is no such file"


def find_expectations(given: Path | None, config: Path) -> Path | None:
    """Return the expectations file: the one given, else the one beside the ``matrix.toml`` in use, else None.

    Expectations belong to a matrix. Those shipped with ours would mostly match no cell of a user's own, and that is an
    error.

    Raises:
        ConfigurationError: the given file is absent.
    """
    if given is not None and not given.is_file():
        raise ConfigurationError(
            f"{given}: {_not_a_file(given)}.", remedy="Give the path of one, or leave the option out."
        )
    beside = config.parent / EXPECTATIONS_NAME
    return given or (beside if beside.is_file() else None)
