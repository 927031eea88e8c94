"""``harness merge --then CMD``: a program that runs once the output is published, and no shell."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from harness.errors import ConfigurationError, HookFailedError

SHELL_ONLY = re.compile(r"&&|\|\||[;&|<>`$]")
"""What a shell would act on, and a program would be given as a word."""
BRACES = re.compile(r"\{(?!out\})\w+\}")
"""A word in braces that is not ours; in quotes it may be somebody else's."""
QUOTED = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*"|\\.""", re.DOTALL)
SHELL_REMEDY = "For a shell say: --then \"sh -c '…'\". Quote what is meant as it stands."
AGAIN = "Run that command again by itself; the merge need not be repeated."


def hook_command(then: str | None, out: Path | None) -> list[str] | None:
    """Return the words of ``--then`` with the output's path put in.

    Raises:
        ConfigurationError: quotes that are not closed, no command in it, or something that only a shell would
            understand.
    """
    if then is None:
        return None
    try:
        words = shlex.split(then)
    except ValueError as error:
        raise ConfigurationError(f"--then cannot be read as a command: {error}.", remedy="Close its quotes.") from error
    bare = QUOTED.sub("", then)
    if found := SHELL_ONLY.search(bare):
        raise ConfigurationError(
            f"--then holds {found[0]!r}, which only a shell understands, and none is used.", remedy=SHELL_REMEDY
        )
    if found := BRACES.search(bare):
        raise ConfigurationError(
            f"--then holds {found[0]!r}; the only word in braces is {{out}}, the output's path.",
            remedy="Write the path itself, or quote what is meant as it stands.",
        )
    if not words or shutil.which(words[0]) is None:
        raise ConfigurationError(
            f"--then names no command that is found here: {then!r}.",
            remedy=f"Correct the name. {SHELL_REMEDY}",
        )
    return [word.replace("{out}", str(out.absolute() if out else "")) for word in words]


def run_hook(words: list[str]) -> None:
    """Run the hook, its output shown as it comes.

    Raises:
        HookFailedError: it failed; the merge stays published.
    """
    try:
        code = subprocess.run(words, check=False).returncode
    except OSError as error:
        raise HookFailedError(
            f"the merge IS published, but the command after it cannot be started: {error}.", remedy=AGAIN
        ) from error
    if code != 0:
        raise HookFailedError(
            f"the merge IS published, but the command after it ended with code {code}: {shlex.join(words)}",
            remedy=AGAIN,
        )
