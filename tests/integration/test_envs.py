"""Environments made by the real uv: from a wheelhouse made here (exact, offline, quick), and one from the indexes.

They come from a wheelhouse made here (exact, offline, quick), and one full stack from the indexes. The wheelhouse is
known to pip only (``PIP_FIND_LINKS``, ``PIP_NO_INDEX``), so that every test also goes through the translation of pip's
settings into uv's.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.envs import (
    Environment,
    Unresolvable,
    check_versions_exist,
    child_environment,
    clean_environments,
    ensure_environment,
    list_environments,
    newest_release,
    prepared_environments,
    unmanaged_environment,
)
from harness.envs.environment import ensure_requirements
from harness.envs.venv import MARKER, release
from harness.errors import EnvironmentFailedError, VersionNotFoundError
from harness.matrix.cell import Stack

pytestmark = pytest.mark.integration

CUDA_TORCH = {"torch/version.py": "cuda: str | None = '13.0'\n"}
CPU_TORCH = {"torch/version.py": "cuda: str | None = None\n"}


def make_wheel(
    folder: Path, name: str, version: str, requires: tuple[str, ...] = (), files: dict[str, str] | None = None
) -> None:
    """Write a minimal wheel (PyPA binary distribution format 1.0) that nothing had to build."""
    info = f"{name}-{version}.dist-info"
    content = {f"{name}/__init__.py": f"VERSION = {version!r}\n"} if files is None else dict(files)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {one}" for one in requires),
    ]
    content[f"{info}/METADATA"] = "\n".join(lines) + "\n"
    content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    rows = []
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text.encode())}")
    content[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    root = tmp_path / "cache"
    monkeypatch.setenv("MOE_LORA_HARNESS_CACHE", str(root))
    return root


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip is told of, and nothing else: no index, no other configuration, an empty uv cache."""
    folder = tmp_path / "wheel house,with a comma"
    for version in ("1.0", "1.1", "2.0", "3.0"):
        make_wheel(folder, "alpha", version)
    make_wheel(folder, "beta", "1.0", ("alpha<2",))
    monkeypatch.setenv("MOE_LORA_HARNESS_CACHE", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    # pip separates find-links by spaces, so a folder with spaces in its name has to be given as an address.
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    return folder


def make(*requirements: str, log: list[str] | None = None) -> Environment:
    return ensure_requirements(requirements, label="test", log=None if log is None else log.append)


def imported(environment: Environment, package: str) -> str:
    code = f"import {package}; print({package}.VERSION)"
    return subprocess.run(
        [environment.python, "-I", "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def lock_files(cache: Path) -> list[Path]:
    return sorted((cache / "locks").glob("*.txt"))


@pytest.mark.usefixtures("wheelhouse")
def test_an_environment_is_made_once_and_reused(cache: Path) -> None:
    first_log: list[str] = []
    second_log: list[str] = []
    first, second = make("alpha==1.1", "beta==1.0", log=first_log), make("beta==1.0", "alpha==1.1", log=second_log)

    assert (first.reused, second.reused) == (False, True)
    assert first.prefix == second.prefix
    assert first.versions == {"alpha": "1.1", "beta": "1.0"}
    assert imported(second, "alpha") == "1.1"
    assert [line for line in first_log if line.startswith("$ ") and " sync " in line]
    assert not [line for line in second_log if line.startswith("$ ")], "nothing is run when everything is there"
    (lock,) = lock_files(cache)
    text = lock.read_text(encoding="utf-8")
    assert first.lock_sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert text.count("--hash=sha256:") == 2
    assert "/" not in text
    assert "comma" not in text


@pytest.mark.usefixtures("wheelhouse")
def test_another_lock_is_another_environment() -> None:

    assert make("alpha==1.0").prefix != make("alpha==1.1").prefix


@pytest.mark.usefixtures("wheelhouse")
def test_a_conflict_is_unresolvable_in_uvs_own_words() -> None:
    with pytest.raises(Unresolvable) as caught:
        make("alpha==2.0", "beta==1.0")

    assert "all versions of beta depend on alpha<2 and you require alpha==2.0" in " ".join(
        caught.value.explanation.split()
    )


@pytest.mark.usefixtures("wheelhouse")
def test_a_version_that_no_index_has_is_named_with_its_neighbours() -> None:
    with pytest.raises(VersionNotFoundError) as caught:
        make("alpha==1.7", "beta==1.0")

    assert caught.value.exit_code == 2
    assert "alpha==1.7" in caught.value.message
    assert "beta" not in caught.value.message
    assert "1.1 is the nearest below and 2.0 the nearest above, 3.0 is the newest" in str(caught.value.remedy)


@pytest.mark.usefixtures("wheelhouse")
@pytest.mark.parametrize(
    ("pin", "words"),
    [
        ("alpha==2.0+cpu", "alpha 2.0 is offered, without the build +cpu."),
        ("alpha==1.7+cpu", "1.1 is the nearest below and 2.0 the nearest above, 3.0 is the newest"),
    ],
)
def test_a_build_that_no_index_has_is_told_in_our_words(pin: str, words: str) -> None:
    with pytest.raises(VersionNotFoundError) as caught:
        make(pin)

    assert caught.value.message == f"No configured package index offers {pin}."
    assert words in str(caught.value.remedy)


@pytest.mark.usefixtures("wheelhouse")
def test_a_package_that_no_index_has_is_told_from_a_version() -> None:
    with pytest.raises(VersionNotFoundError, match=r"gamma==1\.0") as caught:
        make("gamma==1.0")

    assert "no index has a package 'gamma'" in str(caught.value.remedy).lower()
    with pytest.raises(VersionNotFoundError, match="gamma"):
        newest_release("gamma")
    assert newest_release("alpha") == "3.0"


@pytest.mark.usefixtures("wheelhouse")
def test_an_index_out_of_reach_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:hunter2@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    log: list[str] = []

    with pytest.raises(EnvironmentFailedError, match="Failed to fetch") as caught:
        make("six==1.17.0", log=log)

    assert caught.value.exit_code == 4
    assert "out of reach" in str(caught.value.remedy)
    assert "hunter2" not in caught.value.message + "\n".join(log)


def test_what_is_cached_needs_no_index(wheelhouse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make("alpha==1.1")
    for wheel in wheelhouse.iterdir():
        wheel.rename(wheel.with_suffix(".gone"))
    monkeypatch.setenv("UV_OFFLINE", "1")

    assert make("alpha==1.1").prefix == first.prefix


@pytest.mark.parametrize("gone", ["the folder", "the index", "the wheels and what was known of them"])
def test_what_was_made_is_used_when_the_indexes_are_gone_and_said_to_be(
    wheelhouse: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    first = make("alpha==1.1", "beta==1.0")
    if gone == "the folder":
        wheelhouse.rename(wheelhouse.with_name("elsewhere"))
    elif gone == "the index":
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        monkeypatch.setenv("PIP_RETRIES", "0")
    else:
        for wheel in wheelhouse.iterdir():
            wheel.unlink()
        clean_environments([], locks=True, root=cache)
    log: list[str] = []
    again = make("beta==1.0", "alpha==1.1", log=log)

    assert (again.prefix, again.identity, again.lock_sha256) == (first.prefix, first.identity, first.lock_sha256)
    assert first.note is None
    assert again.note is not None
    assert re.fullmatch(r"test: the environment of 20\S+ is used; what it would hold today cannot be asked", again.note)
    assert again.note in "\n".join(log)
    with pytest.raises((EnvironmentFailedError, VersionNotFoundError)):
        make("alpha==1.0")


def test_a_stack_that_was_made_need_not_be_offered_any_more(wheelhouse: Path) -> None:
    for name, version in (("transformers", "5.5.0"), ("peft", "0.19.1"), ("trl", "1.4.0")):
        make_wheel(wheelhouse, name, version)
    stack = Stack(transformers="5.5.0", peft="0.19.1", trl="1.4.0")
    other = stack.model_copy(update={"trl": "1.5.0"})
    made = ensure_environment(stack)
    assert prepared_environments([stack]).identities == {stack.key: made.identity}, "what its lock alone says"
    wheelhouse.rename(wheelhouse.with_name("elsewhere"))

    check_versions_exist([stack])
    assert ensure_environment(stack).prefix == made.prefix
    with pytest.raises(VersionNotFoundError, match=r"trl==1\.5\.0"):
        check_versions_exist([stack, other])


@pytest.mark.usefixtures("wheelhouse")
def test_one_whose_files_may_be_edited_or_that_was_asked_of_another_day_does_not_stand_in(
    wheelhouse: Path,
) -> None:
    ensure_requirements(["alpha==1.1"], label="copy", link_mode="copy")
    ensure_requirements(["alpha==2.0"], label="fresh", marks=("fresh 2026-11-01",))
    wheelhouse.rename(wheelhouse.with_name("elsewhere"))

    with pytest.raises(VersionNotFoundError):
        make("alpha==1.1")
    with pytest.raises(VersionNotFoundError):
        ensure_requirements(["alpha==2.0"], label="fresh", marks=("fresh 2026-11-02",))
    assert ensure_requirements(["alpha==2.0"], label="fresh", marks=("fresh 2026-11-01",)).note


@pytest.mark.usefixtures("wheelhouse")
def test_an_environment_of_ours_that_is_given_as_an_interpreter_is_in_use() -> None:
    made = make("alpha==1.1")
    release(made.prefix)
    assert not list_environments()[0].in_use
    given = unmanaged_environment(made.python)

    assert given.prefix == made.prefix
    assert list_environments()[0].in_use
    assert clean_environments() == []


@pytest.mark.usefixtures("wheelhouse")
def test_a_half_made_environment_is_removed_and_made_again(cache: Path) -> None:
    code = (
        "import os; from harness.envs.environment import ensure_requirements\n"
        "die = lambda line: os.kill(os.getpid(), 9) if ' pip sync ' in line else None\n"
        "ensure_requirements(['alpha==1.1'], label='killed', log=die)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -9
    (half,) = list_environments(cache)
    assert not half.complete
    (half.path / "leftover").write_text("", encoding="utf-8")

    made = make("alpha==1.1")

    assert (made.prefix, made.reused) == (half.path, False)
    assert not (made.prefix / "leftover").exists()
    assert imported(made, "alpha") == "1.1"


@pytest.mark.usefixtures("wheelhouse")
def test_an_environment_that_lost_its_python_is_made_again_by_the_same_process() -> None:
    first = make("alpha==1.1")
    first.python.unlink()
    again = make("alpha==1.1")

    assert (again.prefix, again.reused) == (first.prefix, False)
    assert imported(again, "alpha") == "1.1"


@pytest.mark.usefixtures("wheelhouse")
def test_processes_at_once_make_one(cache: Path) -> None:
    code = (
        "from harness.envs.environment import ensure_requirements\n"
        "print(ensure_requirements(['alpha==1.1', 'beta==1.0'], label='raced').reused)\n"
    )

    def start(_: int) -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    with ThreadPoolExecutor(3) as pool:
        said = sorted(pool.map(start, range(3)))

    assert said == ["False", "True", "True"]
    assert [item.complete for item in list_environments(cache)] == [True]


@pytest.mark.usefixtures("wheelhouse")
def test_one_in_use_is_not_cleaned() -> None:
    made = make("alpha==1.1")
    assert [item.in_use for item in list_environments()] == [True]
    assert clean_environments() == []

    release(made.prefix)

    assert [item.path for item in clean_environments()] == [made.prefix]
    assert list_environments() == []


def test_a_lock_that_no_longer_installs_is_resolved_again_and_said_to_be(
    wheelhouse: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make("alpha==1.1")
    release(before.prefix)
    clean_environments()
    # The same version, other bytes, as an index does that rebuilds a wheel; and a uv that has not kept the old ones.
    monkeypatch.setenv("UV_CACHE_DIR", str(wheelhouse.parent / "another-uv-cache"))
    (wheelhouse / "alpha-1.1-py3-none-any.whl").unlink()
    make_wheel(wheelhouse, "alpha", "1.1", files={"alpha/__init__.py": "VERSION = 'rebuilt'\n"})
    log: list[str] = []

    after = make("alpha==1.1", log=log)

    assert [line for line in log if "resolving again" in line]
    assert after.lock_sha256 != before.lock_sha256
    assert imported(after, "alpha") == "rebuilt"
    assert len(lock_files(cache)) == 1


@pytest.mark.usefixtures("wheelhouse")
def test_copies_can_be_edited_without_leaking() -> None:
    linked = make("alpha==1.1")
    copied = ensure_requirements(["alpha==1.1"], label="copied", link_mode="copy")
    source = next(copied.prefix.glob("lib/python*/site-packages/alpha/__init__.py"))
    source.write_text("VERSION = 'patched'\n", encoding="utf-8")

    assert copied.prefix != linked.prefix
    assert imported(copied, "alpha") == "patched"
    assert imported(linked, "alpha") == "1.1"


def test_torch_is_the_cpu_build_where_one_is_offered(wheelhouse: Path) -> None:
    make_wheel(wheelhouse, "torch", "9.0", files=CUDA_TORCH)
    make_wheel(wheelhouse, "torch", "9.0+cpu", files=CPU_TORCH)
    make_wheel(wheelhouse, "delta", "1.0", ("torch>=8",))

    assert make("torch==9.0").versions == {"torch": "9.0+cpu"}
    assert make("delta==1.0").versions == {"delta": "1.0", "torch": "9.0+cpu"}


def test_torch_is_the_cuda_build_only_when_asked_for(wheelhouse: Path) -> None:
    make_wheel(wheelhouse, "torch", "9.0", ("nvidia_probe",), files=CUDA_TORCH)
    make_wheel(wheelhouse, "torch", "9.0+cpu", files=CPU_TORCH)
    make_wheel(wheelhouse, "nvidia_probe", "1.0")

    asked = ensure_requirements(["torch==9.0"], label="cuda", device="cuda")

    assert asked.versions == {"nvidia-probe": "1.0", "torch": "9.0"}
    assert make("torch==9.0").versions == {"torch": "9.0+cpu"}


def test_no_cpu_build_is_an_error_with_a_remedy_and_never_the_plain_one(wheelhouse: Path, cache: Path) -> None:
    make_wheel(wheelhouse, "torch", "9.0", files=CUDA_TORCH)

    with pytest.raises(EnvironmentFailedError, match=r"No CPU build of torch 9\.0") as caught:
        make("torch==9.0")

    assert "PIP_FIND_LINKS" in str(caught.value.remedy)
    assert list_environments(cache) == []


def test_a_build_that_is_not_what_its_label_says_is_found_out(wheelhouse: Path) -> None:
    make_wheel(wheelhouse, "torch", "9.0+cpu", files=CUDA_TORCH)

    with pytest.raises(EnvironmentFailedError, match="the cuda build"):
        make("torch==9.0")

    assert list_environments() == []


@pytest.mark.usefixtures("wheelhouse")
def test_a_python_that_is_not_here_is_an_environment_error() -> None:
    with pytest.raises(EnvironmentFailedError, match=r"Python 3\.99") as caught:
        ensure_requirements(["alpha==1.1"], label="test", python_version="3.99")

    assert caught.value.exit_code == 4


def test_a_missing_find_links_folder_does_not_stop_uv(wheelhouse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", f"{wheelhouse.as_uri()} {wheelhouse.parent / 'absent'}")
    log: list[str] = []

    assert make("alpha==1.1", log=log).versions == {"alpha": "1.1"}
    assert [line for line in log if "absent" in line and "left out" in line]


STACK = Stack(
    transformers="5.5.0",
    peft="0.19.1",
    trl="0.25.1",
    pins={"torch": "2.13.0", "bitsandbytes": "0.50.2", "accelerate": "1.15.0", "datasets": "5.1.0"},
)


def test_a_full_stack_from_the_configured_indexes_has_the_cpu_torch(cache: Path, tmp_path: Path) -> None:
    check_versions_exist([STACK])
    made = ensure_environment(STACK)

    for package in ("transformers", "peft", "trl", "bitsandbytes"):
        assert made.versions[package] == STACK.version_of(package)
    assert not [name for name in made.versions if name.startswith("nvidia-")]
    (lock,) = lock_files(cache)
    text = lock.read_text(encoding="utf-8")
    assert not re.search(r"://|^#|^-| @ |/", text, re.MULTILINE)
    marker = json.loads((made.prefix / MARKER).read_text(encoding="utf-8"))
    assert (marker["label"], marker["torch"]) == (STACK.id, "cpu")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    code = "import json, sys, torch; print(json.dumps([torch.__version__, torch.version.cuda, sys.prefix]))"
    asked = subprocess.run(
        [made.python, "-I", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=child_environment(scratch=scratch, prefix=made.prefix),
        cwd=scratch,
    )
    assert json.loads(asked.stdout) == ["2.13.0+cpu", None, str(made.prefix)]
    assert ensure_environment(STACK).reused
    release(made.prefix)
    clean_environments()


def test_a_release_that_the_indexes_lack_is_found_before_anything_is_planned(cache: Path) -> None:
    with pytest.raises(VersionNotFoundError, match=r"peft==9\.9") as caught:
        check_versions_exist([STACK, STACK.model_copy(update={"peft": "9.9"})])

    assert f"{newest_release('peft')} is the newest" in str(caught.value.remedy)
    assert list_environments(cache) == []
