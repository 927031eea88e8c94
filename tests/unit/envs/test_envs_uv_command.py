"""What uv's failures mean. The texts are uv's own (0.13.8), so that a change of its wording shows here."""

import subprocess
from pathlib import Path

import pytest

from harness.envs.indexes import IndexSettings
from harness.envs.uv_command import Unresolvable, Uv, explain, failure, uv_environment
from harness.errors import EnvironmentFailedError

NO_SUCH_VERSION = """error: No solution found when resolving dependencies
  cause: Because there is no version of peft==9.9 and you require peft==9.9, \
we can conclude that your requirements are unsatisfiable.
"""
NO_SUCH_PACKAGE = """error: No solution found when resolving dependencies
  cause: Because no-such-zzqq was not found in the package registry and you require no-such-zzqq==1.0, \
we can conclude that your requirements are unsatisfiable.
"""
CONFLICT = """warning: `transformers==4.57.0` is yanked (reason: "Error in the setup causing installation issues")
error: No solution found when resolving dependencies
  cause: Because transformers==4.57.6 depends on huggingface-hub>=0.34.0,<1.0 and you require transformers==4.57.6, \
we can conclude that you require huggingface-hub>=0.34.0,<1.0.
         And because you require huggingface-hub==1.3.0, we can conclude that your requirements are unsatisfiable.
"""
OLDER_CONFLICT = """  \N{MULTIPLICATION SIGN} No solution found when resolving dependencies:
  ╰─▶ Because there is no version of peft==9.9 and you require peft==9.9, we
      can conclude that your requirements are unsatisfiable.
"""
WRONG_PYTHON = """error: No solution found when resolving dependencies
  cause: Because the requested Python version (>=3.10) does not satisfy Python>=3.11 \
and numpy==2.4.6 depends on Python>=3.11, we can conclude that numpy==2.4.6 cannot be used.
"""
OFFLINE = """error: No solution found when resolving dependencies
  cause: Because six was not found in the cache and you require six==1.17.0, \
we can conclude that your requirements are unsatisfiable.

hint: Packages were unavailable because the network was disabled. \
When the network is disabled, registry packages may only be read from the cache.
"""
REFUSED = """error: No solution found when resolving dependencies
  cause: Because six was not found in the package registry and you require six==1.17.0, \
we can conclude that your requirements are unsatisfiable.

hint: An index URL (http://me:secret@a.test/simple) could not be queried \
due to a lack of valid authentication credentials (401 Unauthorized)
"""
FORBIDDEN = """error: No solution found when resolving dependencies
  cause: Because six was not found in the package registry and you require six==1.17.0, \
we can conclude that your requirements are unsatisfiable.

hint: An index (http://a.test/simple) returned a 403 Forbidden error. \
Check that the index URL is correct and the credentials are valid.
"""
DOWN = """error: Failed to fetch: http://a.test/simple/six/
  cause: error sending request for url (http://a.test/simple/six/)
  cause: tcp connect error
  cause: Connection refused (os error 111)
"""
NO_FOLDER = "error: Failed to read `--find-links` directory: /nope\n  cause: No such file or directory (os error 2)\n"
FULL = (
    "error: Failed to install: x.whl (x==1)\n"
    "  cause: failed to copy file\n"
    "  cause: No space left on device (os error 28)\n"
)
BAD_HASH = (
    "error: Failed to download `six==1.17.0`\n"
    "  cause: Hash mismatch for `six==1.17.0`\n"
    "\n"
    "         Expected:\n"
    "           sha256:00\n"
)
BAD_CERT = (
    "error: Failed to fetch: https://a.test/\n"
    "  cause: client error (Connect)\n"
    "  cause: invalid peer certificate: UnknownIssuer\n"
)


@pytest.mark.parametrize("stderr", [NO_SUCH_VERSION, NO_SUCH_PACKAGE, CONFLICT, OLDER_CONFLICT, WRONG_PYTHON])
def test_the_stacks_own_fault_is_unresolvable(stderr: str) -> None:
    assert isinstance(failure(1, stderr), Unresolvable)


@pytest.mark.parametrize(
    ("stderr", "remedy"),
    [
        (OFFLINE, "UV_OFFLINE"),
        (REFUSED, "credentials"),
        (FORBIDDEN, "credentials"),
        (DOWN, "out of reach"),
        (NO_FOLDER, "find-links folder"),
        (FULL, "disk is full"),
        (BAD_HASH, "other bytes"),
        (BAD_CERT, "SSL_CERT_FILE"),
        ("error: something new\n", "by hand"),
    ],
)
def test_the_machines_fault_is_an_environment_error_with_a_remedy(stderr: str, remedy: str) -> None:
    error = failure(2, stderr)

    assert isinstance(error, EnvironmentFailedError)
    assert error.exit_code == 4
    assert remedy in str(error.remedy)
    assert "secret" not in error.message


def test_a_conflict_stays_one_though_an_index_refuses_something() -> None:
    refused_elsewhere = CONFLICT + "\nhint: An index (http://a.test/simple) returned a 403 Forbidden error.\n"

    assert isinstance(failure(1, refused_elsewhere), Unresolvable)


def test_missing_is_told_from_contradicting() -> None:
    def missing(stderr: str, package: str) -> bool:
        error = failure(1, stderr)
        assert isinstance(error, Unresolvable)
        return error.says_missing(package)

    assert missing(NO_SUCH_VERSION, "peft")
    assert missing(OLDER_CONFLICT, "PEFT")
    assert not missing(NO_SUCH_VERSION, "pef")
    assert not missing(NO_SUCH_VERSION, "trl")
    assert missing(NO_SUCH_PACKAGE, "No_Such.zzqq")
    assert not missing(NO_SUCH_PACKAGE, "zzqq")
    assert not missing(CONFLICT, "transformers")
    assert not missing(CONFLICT, "huggingface-hub")
    assert not missing(WRONG_PYTHON, "numpy")


def test_the_explanation_is_uvs_words_without_its_decoration() -> None:
    assert explain(CONFLICT).splitlines() == [
        "No solution found when resolving dependencies",
        (
            "Because transformers==4.57.6 depends on huggingface-hub>=0.34.0,<1.0 "
            "and you require transformers==4.57.6, we can conclude that you require huggingface-hub>=0.34.0,<1.0."
        ),
        "And because you require huggingface-hub==1.3.0, we can conclude that your requirements are unsatisfiable.",
    ]


def test_uv_sees_indexes_and_the_network_but_nothing_that_changes_a_resolution() -> None:
    environ = {
        "PATH": "/bin",
        "UV_CACHE_DIR": "/c",
        "UV_INDEX_CORP_PASSWORD": "p",
        "UV_HTTP_TIMEOUT": "9",
        "UV_CONSTRAINT": "c.txt",
        "UV_OVERRIDE": "o.txt",
        "UV_RESOLUTION": "lowest",
        "UV_PYTHON": "3.13",
        "UV_TORCH_BACKEND": "cu128",
        "UV_COMPILE_BYTECODE": "1",
        "UV_PYTHON_DOWNLOADS": "automatic",
        "VIRTUAL_ENV": "/v",
        "PYTHONPATH": "/p",
        "PIP_INDEX_URL": "https://a.test",
    }
    given = uv_environment(environ, IndexSettings(source="pip", environment={"UV_INDEX": "https://b.test"}))

    assert given == {
        "PATH": "/bin",
        "UV_CACHE_DIR": "/c",
        "UV_INDEX_CORP_PASSWORD": "p",
        "UV_HTTP_TIMEOUT": "9",
        "UV_INDEX": "https://b.test",
        "UV_LINK_MODE": "hardlink",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
        "NO_COLOR": "1",
    }


def runner(binary: Path, folder: Path, lines: list[str]) -> Uv:
    settings = IndexSettings(source="pip", environment={}, options=("--no-index",))
    return Uv(binary=binary, version="0", indexes=settings, folder=folder, environment={}, log=lines.append)


def test_every_command_is_logged_so_that_it_can_be_pasted_before_it_runs(tmp_path: Path) -> None:
    lines: list[str] = []
    uv = runner(Path("/bin/echo"), tmp_path, lines)

    said = uv(["pip", "compile", "-", "--python", "/a b/python"], stdin="six==1.17.0\nx>1\n")

    assert lines == [
        "$ printf '%s\\n' six==1.17.0 'x>1' | /bin/echo pip compile - --python '/a b/python' --no-index",
    ]
    assert said == "pip compile - --python /a b/python --no-index\n"
    again = subprocess.run(["/bin/sh", "-c", lines[0].removeprefix("$ ")], capture_output=True, text=True, check=True)
    assert again.stdout == said


def test_a_uv_that_cannot_start_is_an_environment_error(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailedError, match="could not be started"):
        runner(tmp_path / "absent", tmp_path, [])(["pip", "compile"])
