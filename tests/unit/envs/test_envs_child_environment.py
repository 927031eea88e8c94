"""A cell's variables: an allow-list, offline, with nothing of the user's."""

import string
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from harness.envs.child_environment import child_environment

KNOWN = ("PATH", "HOME", "HF_HOME", "PYTHONPATH", "CUDA_HOME", "NVIDIA_X", "LD_LIBRARY_PATH")
NAMES = st.one_of(st.text(alphabet=string.ascii_uppercase + "_", min_size=1), st.sampled_from(KNOWN))
SCRATCH = Path("/scratch/cell")


@given(st.dictionaries(NAMES, st.text(), max_size=20))
def test_on_a_cpu_nothing_is_inherited(source: dict[str, str]) -> None:
    assert child_environment(scratch=SCRATCH, source=source) == child_environment(scratch=SCRATCH, source={})


@given(st.dictionaries(NAMES, st.text()))
def test_cuda_lets_only_its_own_through(source: dict[str, str]) -> None:
    bare = child_environment(scratch=SCRATCH, device="cuda", source={})
    found = child_environment(scratch=SCRATCH, device="cuda", source=source)

    assert {name for name in found if name not in bare} == {
        name for name in source if name.startswith(("CUDA_", "NVIDIA_")) or name == "LD_LIBRARY_PATH"
    }


def test_a_cpu_cell_sees_no_gpu_and_a_cuda_cell_sees_the_users_choice() -> None:
    source = {"CUDA_VISIBLE_DEVICES": "1"}

    assert child_environment(scratch=SCRATCH, source=source)["CUDA_VISIBLE_DEVICES"] == ""
    assert child_environment(scratch=SCRATCH, device="cuda", source=source)["CUDA_VISIBLE_DEVICES"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in child_environment(scratch=SCRATCH, device="cuda", source={})


def test_threads_home_path_and_offline() -> None:
    found = child_environment(scratch=SCRATCH, threads=3, prefix=Path("/env"))

    assert {found[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"3"}
    assert found["OMP_WAIT_POLICY"] == "PASSIVE"
    assert found["HOME"] == found["TMPDIR"] == "/scratch/cell"
    assert found["PATH"].split(":")[0] == "/env/bin"
    assert found["HF_HUB_OFFLINE"] == found["TRANSFORMERS_OFFLINE"] == found["HF_DATASETS_OFFLINE"] == "1"
    assert found["HF_HOME"].startswith("/scratch/cell/")
    assert found["https_proxy"] == found["HTTPS_PROXY"] == "http://127.0.0.1:9"
    assert found["PYTHONHASHSEED"] == "0"
    assert "PYTHONDONTWRITEBYTECODE" not in found
