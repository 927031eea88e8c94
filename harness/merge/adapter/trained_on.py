"""Whether an adapter was trained on another directory than the base it is to be merged into.

After a QLoRA the two are easy to take for each other.
"""

from __future__ import annotations

from pathlib import Path

from harness.merge.errors import MergeError
from harness.merge.files.hub_cache import find_directory
from harness.merge.files.json_file import read_object


def trained_elsewhere(adapter: Path, base: Path) -> str | None:
    """Return the directory that the adapter names as its base, where that is here and is another one than ``base``.

    None where nothing can be said. What cannot be read says nothing here: the engine will say what is wrong with it.
    """
    try:
        named = read_object(find_directory(adapter) / "adapter_config.json").get("base_model_name_or_path")
        given = find_directory(base)
    except MergeError:
        return None
    if not isinstance(named, str) or not named or "\0" in named:
        return None
    try:
        trained_on = Path(named)
        other = trained_on.is_dir() and given.is_dir() and not trained_on.samefile(given)
    except OSError:  # a name that is too long, a directory that may not be read
        return None
    return named if other else None
