"""What real stacks do, and that the verdicts say so. One run of the real command; each test asks it one question."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from real_stacks import CELLS, LINEARS, NEWEST, NO_RELOAD, STANDARD, SWAPPED, Ran, harness

from harness.faults import fault
from harness.report.format import all_formats

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

# On-disk tensors that a LoRA covers, by hand: layers x experts x 3 + attention + shared and dense MLPs.
QWEN3 = {"attention": 2 * 4, "expert": 2 * 8 * 3}
GLM4 = {"attention": 3 * 4, "expert": 2 * 8 * 3, "shared_expert": 2 * 3, "dense": 3}
DEEPSEEK = {"attention": 3 * 5, "expert": 2 * 8 * 3, "shared_expert": 2 * 3, "dense": 3}
QWEN3_5 = {"attention": 5 + 4, "expert": 2 * 2, "shared_expert": 2 * 3}
QWEN3_5_PER_EXPERT = {"attention": 5 + 4, "expert": 2 * 8 * 3, "shared_expert": 2 * 3}

COUNTS = {
    f"qwen3_moe/lora@{LINEARS}": QWEN3,
    f"qwen3_moe/lora@{SWAPPED}": QWEN3,
    f"qwen3_moe/lora@{STANDARD}": QWEN3,
    f"qwen3_moe/lora@{NEWEST}": QWEN3,
    f"qwen3_moe/lora@{NO_RELOAD}": QWEN3,
    f"glm4_moe/lora@{LINEARS}": GLM4,
    f"glm4_moe/lora@{STANDARD}": GLM4,
    f"deepseek_v3/lora@{SWAPPED}": DEEPSEEK,
    f"deepseek_v3/lora@{NEWEST}": DEEPSEEK,
    f"qwen3_5_moe/lora@{STANDARD}": QWEN3_5,
    f"qwen3_5_moe/lora@{STANDARD}+variant=per-expert": QWEN3_5_PER_EXPERT,
    f"qwen3_5_moe/lora@{NEWEST}+variant=text-prefix": QWEN3_5,
    f"qwen3_5_moe/lora@{STANDARD}+variant=nested-config": QWEN3_5,
    f"qwen3_moe/lora-experts@{SWAPPED}+geometry=square-gate-up": {"expert": 2 * 8 * 3},
    f"qwen3_moe/lora-experts@{NEWEST}+geometry=square-gate-up": {"expert": 2 * 8 * 3},
    f"qwen3_moe/lora-experts@{SWAPPED}+geometry=square-down": {"expert": 2 * 8 * 3},
    f"qwen3_moe/lora-experts@{NEWEST}+geometry=square-down": {"expert": 2 * 8 * 3},
    f"qwen3_moe/lora-down-only@{SWAPPED}+geometry=square-down": {"expert": 2 * 8},
    f"qwen3_moe/lora-gate-up-only@{STANDARD}": {"expert": 2 * 8 * 2},
    f"qwen3_moe/lora-experts@{NEWEST}+geometry=single": {"expert": 2 * 1 * 3},
    f"qwen3_moe/lora@{NEWEST}+dtype=bf16": QWEN3,
}
PASSING = [cell for cell in COUNTS if NO_RELOAD not in cell]


def test_the_run_is_as_expected(matrix_run: Ran) -> None:
    assert matrix_run.code == 0, matrix_run.output


@pytest.mark.parametrize("cell", PASSING)
def test_a_right_merge_passes_every_check(matrix_run: Ran, cell: str) -> None:
    result = matrix_run.result(cell)
    names = {check["name"] for check in result["checks"]}

    assert result["outcome"] == "pass", result["reason"]
    assert all(stage["result"] == "pass" for stage in result["stages"].values())
    assert result["not_possible"] == {}, "on declared stacks ours knows every release's experts"
    assert names >= {
        "attached", "gradients", "loss", "coverage", "signal", "kl", "logprob", "samples", "applied", "exact",
        "untouched_bytes", "keys", "dtypes", "files", "adapter_reload", "control:base-copied",
    }  # fmt: skip


@pytest.mark.parametrize(("cell", "kinds"), COUNTS.items())
def test_every_tensor_that_a_lora_covers_is_counted(matrix_run: Ran, cell: str, kinds: dict[str, int]) -> None:
    merge = matrix_run.result(cell)["merge"]

    assert {kind: counts["attempted"] for kind, counts in merge["by_kind"].items()} == kinds
    assert merge["attempted"] == merge["applied"] == merge["engine_applied"] == sum(kinds.values())


@pytest.mark.parametrize("cell", PASSING)
def test_a_cell_would_have_noticed(matrix_run: Ran, cell: str) -> None:
    """Signal is far above every band, and each control was rejected by all that must reject it."""
    result = matrix_run.result(cell)
    fused = LINEARS not in cell and "geometry=single" not in cell

    assert result["metrics"]["kl_trained_base"] >= 0.1
    controls = {control["name"] for control in result["controls"]}
    assert "base-copied" in controls
    assert ("b-packing" in controls) == fused
    for control in result["controls"]:
        assert control["rejected"]
        assert set(control["by"]) >= fault(control["name"]).checks_of("compare")
    assert controls >= {"one-delta-off", "untidy"}
    altered = [check for check in result["checks"] if check["name"].startswith("control:")]
    assert len(altered) > 20
    assert all(check["passed"] for check in altered)


@pytest.mark.parametrize(
    ("stack", "layout"), [(LINEARS, None), (SWAPPED, "swapped"), (STANDARD, "standard"), (NEWEST, "standard")]
)
def test_the_io_layout_of_each_peft_is_seen(matrix_run: Ran, stack: str, layout: str | None) -> None:
    adapter = matrix_run.result(f"qwen3_moe/lora@{stack}")["adapter"]

    assert adapter["io_layout"] == layout
    assert adapter["peft_version"] == stack.split("peft", 1)[1].split("-", 1)[0]


def test_bytes_are_the_same_in_every_stack(matrix_run: Ran) -> None:
    digests = {
        matrix_run.result(f"qwen3_moe/lora@{stack}")["base_sha256"] for stack in (LINEARS, SWAPPED, STANDARD, NEWEST)
    }

    assert len(digests) == 1


def test_a_family_that_transformers_lacks_is_unsupported_in_its_own_words(matrix_run: Ran) -> None:
    result = matrix_run.result(f"qwen3_5_moe/lora@{LINEARS}")

    assert (result["outcome"], result["stage"]) == ("unsupported", "load")
    assert "does not recognize this architecture" in result["reason"]


def test_a_right_merge_whose_adapter_cannot_be_loaded_again_shows_both(matrix_run: Ran) -> None:
    result = matrix_run.result(f"qwen3_moe/lora@{NO_RELOAD}")
    report = json.loads((matrix_run.out / "report.json").read_text())
    row = next(row for row in report["rows"] if row["result"]["cell_id"] == result["cell_id"])

    assert (result["outcome"], result["stage"]) == ("error", "reload-adapter")
    assert "TypeError" in result["reason"]
    assert "distributed_operation" in result["reason"]
    assert result["stages"]["compare"]["result"] == "pass"
    assert result["metrics"]["kl_trained_merged"] < 1e-9
    assert row["status"] == "known-failure"


def test_peft_0_18_refuses_a_single_expert(matrix_run: Ran) -> None:
    result = matrix_run.result(f"qwen3_moe/lora-experts@{SWAPPED}+geometry=single")

    assert (result["outcome"], result["stage"]) == ("error", "train")


def test_bf16_is_rounded_once(matrix_run: Ran) -> None:
    metrics = matrix_run.result(f"qwen3_moe/lora@{NEWEST}+dtype=bf16")["metrics"]

    assert metrics["tensors_exact_fraction"] >= 0.9999
    assert metrics["max_ulp"] <= 1.0
    assert metrics["dtype_changes"] == 0


@pytest.mark.parametrize("cell", PASSING)
def test_a_kept_adapter_finds_its_base(matrix_run: Ran, cell: str) -> None:
    work = matrix_run.work(cell)
    configs = [json.loads(path.read_text()) for path in work.glob("*/adapter_config.json")]

    assert configs
    for config in configs:
        assert config["base_model_name_or_path"] == str(work / "base")
    assert (work / "base" / "config.json").is_file()


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_of_the_machine_stays_in_a_result(matrix_run: Ran, cell: str) -> None:
    text = json.dumps(matrix_run.result(cell))

    assert str(Path.home()) not in text
    assert str(matrix_run.out) not in text
    assert not re.search(r"(?<![<\w.])/(home|root|tmp|usr|opt|var)/", text)


def test_the_report_is_written_in_every_format(matrix_run: Ran) -> None:
    markdown = (matrix_run.out / "report.md").read_text()

    assert markdown.count("56/56") >= 5
    assert "known failure" in markdown
    assert all((matrix_run.out / each.file).stat().st_size > 0 for each in all_formats())


def test_a_planted_packing_fault_passes_the_engine_s_own_count_and_nothing_else(tmp_path: Path) -> None:
    done = harness("run", "--model", "qwen3_moe", "--peft", "0.19.1", "--fault", "b-packing", "--out", tmp_path)
    cell = f"qwen3_moe/lora@{STANDARD}+fault=b-packing"
    result = Ran(code=done.returncode, output=done.stdout, out=tmp_path).result(cell)
    failed = {check["name"] for check in result["checks"] if not check["passed"]}

    assert done.returncode == 1
    assert result["outcome"] == "fail"
    assert result["merge"]["engine_applied"] == result["merge"]["attempted"] == 56, "the engine sees nothing wrong"
    assert failed >= {"applied", "kl", "samples"}, "the tensor gate, KL and samples each catch it"
    assert result["merge"]["by_kind"]["expert"]["wrong"] == 48
    assert result["merge"]["by_kind"]["attention"]["applied"] == 8
    assert "reproduce" in done.stdout
    assert "--fault b-packing" in done.stdout
    controls = {control["name"]: control for control in result["controls"]}
    assert set(controls) >= {"b-packing", "base-copied"}, "the cell's own merge is the one, the other is tried as ever"
    assert all(control["rejected"] for control in controls.values())
    assert set(controls["b-packing"]["by"]) == failed


def test_a_base_published_as_the_merge_is_a_noop(tmp_path: Path) -> None:
    done = harness("run", "--model", "glm4_moe", "--peft", "0.18.1", "--fault", "base-copied", "--out", tmp_path)
    result = Ran(code=done.returncode, output=done.stdout, out=tmp_path).result(
        f"glm4_moe/lora@{SWAPPED}+fault=base-copied"
    )

    assert done.returncode == 1
    assert (result["outcome"], result["stage"]) == ("noop", "compare")
    assert result["merge"]["dropped"] == result["merge"]["attempted"] == 69


def test_a_fault_that_would_break_nothing_is_refused_in_words(tmp_path: Path) -> None:
    """With Linears in memory there is no fused lora_B to misread."""
    done = harness("run", "--model", "qwen3_moe", "--transformers", "4.57.6", "--fault", "b-packing", "--out", tmp_path)

    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: --fault b-packing would break nothing in " in done.stderr
    assert "what to do: " in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not list((tmp_path / "cells").rglob("*.json")), "it would be a row of the next report"


def test_run_completes_versions_and_says_what_it_chose(tmp_path: Path) -> None:
    done = harness(
        "run", "--model", "glm4_moe", "--peft", "0.18.1", "--out", tmp_path, "--json", tmp_path / "result.json"
    )
    result = json.loads((tmp_path / "result.json").read_text())

    assert done.returncode == 0, done.stdout + done.stderr
    assert "0.18.1" in done.stdout.splitlines()[0]
    assert result["cell_id"] == f"glm4_moe/lora@{SWAPPED}"
    assert result["versions"]["peft"] == "0.18.1"
    assert "69/69" in done.stdout
