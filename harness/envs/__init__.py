"""Where a stack runs: a hashed lock and an isolated environment for each, content-addressed, reused, never half-made.

``environment`` is the door; everything else is behind it. ``indexes`` stands apart. It uses the standard library alone,
because ``noxfile.py`` loads it by path before anything of ours is installed.
"""

from harness.envs.cache import cache_dir, clean_environments, has_environment, list_environments
from harness.envs.child_environment import child_environment
from harness.envs.choice import IndexChooser, open_chooser
from harness.envs.environment import Environment, ensure_environment, unmanaged_environment
from harness.envs.layout import results_folder
from harness.envs.prepared import Prepared, prepared_environments
from harness.envs.uv_command import Unresolvable
from harness.envs.versions import check_versions_exist, newest_release, yanked_pins

__all__ = [
    "Environment",
    "IndexChooser",
    "Prepared",
    "Unresolvable",
    "cache_dir",
    "check_versions_exist",
    "child_environment",
    "clean_environments",
    "ensure_environment",
    "has_environment",
    "list_environments",
    "newest_release",
    "open_chooser",
    "prepared_environments",
    "results_folder",
    "unmanaged_environment",
    "yanked_pins",
]
