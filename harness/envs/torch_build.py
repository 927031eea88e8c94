"""Which build of torch an environment gets: the CPU one, unless CUDA is asked for, and proof that it was that one.

The plain ``torch`` of the public index brings several gigabytes of CUDA on Linux. The rule, in order:

1. a find-links folder or an index offers the pinned version as ``+cpu``: that;
2. uv's ``--torch-backend cpu``, which asks the PyTorch project's own index;
3. otherwise the environment cannot be made, and the error says how it could be.

For CUDA: the release without a local label if it depends on CUDA packages, else uv's ``--torch-backend auto``.

After the installation the files are read to see which build it really is. They are not imported: that is the cell's
business.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.version import Version

from harness.contract.cell_fields import Device
from harness.envs.interpreter import Interpreter
from harness.envs.lock import compile_requirements
from harness.envs.uv_command import Unresolvable, UvRunner
from harness.errors import EnvironmentFailedError

Build = Literal["cpu", "cuda", "other"]


@dataclass(frozen=True, kw_only=True)
class TorchChoice:
    """How torch is asked for.

    Attributes:
        requirement: takes the place of the stack's own pin.
        backend: for ``uv --torch-backend``, or None to leave it away.
    """

    requirement: str
    backend: str | None = None


def choose_torch(uv: UvRunner, version: str, interpreter: Interpreter, device: Device) -> TorchChoice:
    """Decide how to ask for ``version`` of torch, as the module says.

    Args:
        uv: runs uv.
        version: the pinned version, which some index has. With a local label (``2.13.0+cpu``) it is taken as it is.
        interpreter: the one that the build must fit.
        device: ``cpu`` or ``cuda``.

    Raises:
        EnvironmentFailedError: no such build is offered, or an index is out of reach.
    """
    if Version(version).local or (device == "cpu" and interpreter.platform.startswith("macosx")):
        return TorchChoice(requirement=f"torch=={version}")
    if device == "cuda":
        return _choose_cuda(uv, version, interpreter)
    labelled = f"torch=={version}+cpu"
    try:
        compile_requirements(uv, [labelled], interpreter.python, dependencies=False)
    except Unresolvable:
        pass
    else:
        return TorchChoice(requirement=labelled)
    try:
        compile_requirements(uv, [labelled], interpreter.python, dependencies=False, torch_backend="cpu")
    except (Unresolvable, EnvironmentFailedError) as error:
        raise EnvironmentFailedError(
            f"No CPU build of torch {version} for {interpreter.tag} can be had: no find-links folder or index offers"
            f" {labelled}, and uv's --torch-backend=cpu ended with: {error}",
            remedy=f"Put the wheel of torch {version}+cpu into a folder and name it in PIP_FIND_LINKS (or "
            "UV_FIND_LINKS), name an index that has it in PIP_EXTRA_INDEX_URL, or let this machine reach the PyTorch "
            "project's index.",
        ) from error
    return TorchChoice(requirement=labelled, backend="cpu")


def _choose_cuda(uv: UvRunner, version: str, interpreter: Interpreter) -> TorchChoice:
    # `===` compares the text: `==` would also accept, and prefer, a `+cpu` build that happens to be offered.
    exact = f"torch==={version}"
    try:
        lock = compile_requirements(uv, [exact], interpreter.python)
    except Unresolvable as error:
        reason = error.explanation
    else:
        if "\nnvidia-" in f"\n{lock}":
            return TorchChoice(requirement=exact)
        reason = f"{exact} does not depend on CUDA packages here"
    try:
        compile_requirements(
            uv, [exact.replace("===", "==")], interpreter.python, dependencies=False, torch_backend="auto"
        )
    except (Unresolvable, EnvironmentFailedError) as error:
        raise EnvironmentFailedError(
            f"No CUDA build of torch {version} for {interpreter.tag} can be had: {reason}; and uv's "
            f"--torch-backend=auto ended with: {error}",
            remedy="Name an index or a find-links folder that has it, or run with --python PATH on an interpreter that "
            "has a CUDA build of torch already, or with --device cpu.",
        ) from error
    return TorchChoice(requirement=exact.replace("===", "=="), backend="auto")


def exact_torch(lock: str) -> str:
    """Make a lock of a CUDA build say ``torch===V`` where it says ``torch==V``.

    ``==`` would let a ``+cpu`` wheel in. A version that has a local label is exact already and stays.
    """
    lines = lock.splitlines(keepends=True)
    return "".join(
        line.replace("torch==", "torch===", 1)
        if line.startswith("torch==") and not line.startswith("torch===") and "+" not in line
        else line
        for line in lines
    )


def installed_build(site_packages: Path) -> Build | None:
    """Return which build of torch lies in a ``site-packages`` folder; None without torch.

    It is read from ``torch/version.py``. torch's own build writes that file. It assigns ``cuda``, ``hip`` and ``xpu`` a
    version or None.
    """
    try:
        tree = ast.parse((site_packages / "torch" / "version.py").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    values: dict[str, object] = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            targets = [node.target.id]
        elif isinstance(node, ast.Assign):
            targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
        else:
            continue
        if isinstance(node.value, ast.Constant):
            values |= dict.fromkeys(targets, node.value.value)
    return build_of(values)


def build_of(values: Mapping[str, object]) -> Build:
    """Return the build that the assignments in ``torch/version.py`` speak of."""
    if values.get("cuda"):
        return "cuda"
    return "other" if values.get("hip") or values.get("xpu") else "cpu"


def assert_torch_build(site_packages: Path, device: Device, *, where: str) -> Build | None:
    """Check that the installed torch is the build that ``device`` needs; return it.

    Raises:
        EnvironmentFailedError: it is another one.
    """
    found = installed_build(site_packages)
    if found is not None and found != device:
        raise EnvironmentFailedError(
            f"torch was to be the {device} build and what {where} holds is the {found} build: an index or find-links"
            " folder offers another build under the same version.",
            remedy=f"Pin the version with its label (such as torch==2.13.0+{'cpu' if device == 'cpu' else 'cu130'}), or"
            " take the source that offers the other build out of the index settings.",
        )
    return found
