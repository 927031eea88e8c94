"""The parts of stages that need no library under test: targets, options, the record of a cell, processes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.contract.bands import Bands
from harness.contract.cell_fields import CellFields
from harness.contract.stages import StageName
from harness.matrix.catalogue import read_catalogue
from harness.matrix.config import Bands as HostBands
from harness.worker.checkpoints.family import build
from harness.worker.checkpoints.geometry import geometry
from harness.worker.observation import Observation, StageStoppedError, UnsupportedError, describe
from harness.worker.offline import NetworkTouchedError, _hook
from harness.worker.processes import run_in_child
from harness.worker.recipes.recipe import recipe
from harness.worker.request import Request, read_request
from harness.worker.stages.attach import dtypes_of
from harness.worker.stages.data import TRAINING_LENGTH, TRAINING_SEQUENCES, evaluation_prompts, training_sequences
from harness.worker.stages.peft_names import rank_and_scaling
from harness.worker.stages.quantized import LORA_DTYPES, save_lora_dtypes
from harness.worker.stages.targets import Form, expected_targets
from harness.worker.stages.trainer_options import trainer_options
from harness.worker.steps import _gpu_versions

RECIPES = read_catalogue().recipes


def _request(work: Path, **changes: Any) -> Request:
    bands = Bands(
        kl_max=1.0, logprob_max=1.0, samples_min=1.0, signal_min=0.1, exact_min=0.5, ulp_max=1.0,
        adapter_reload_kl_max=1.0, near_tie_epsilon=0.0, clear_min=0.5, definition_max=1.0, paths_max=1.0,
    )  # fmt: skip
    fields: dict[str, Any] = {
        "family": "qwen3_moe", "recipe": "lora", "geometry": "distinct", "variant": "published", "dtype": "float32",
        "device": "cpu", "seed": 0, "engine": "reference", "fault": None, "work": work,
        "observation": work / "observation.json", "threads": 1, "bands": bands,
    }  # fmt: skip
    return Request(**{**fields, **changes})


def test_bands_of_host_and_worker_have_the_same_names() -> None:
    assert {field.name for field in dataclasses.fields(Bands)} == set(HostBands.model_fields)


def test_a_request_is_read_back(tmp_path: Path) -> None:
    request = dataclasses.replace(_request(tmp_path), processes="started")
    cell = {field.name: getattr(request, field.name) for field in dataclasses.fields(CellFields)}
    data = {
        "cell": cell,
        "work": str(tmp_path),
        "observation": str(request.observation),
        "threads": 1,
        "processes": "started",
        "bands": dataclasses.asdict(request.bands),
    }
    (tmp_path / "request.json").write_text(json.dumps(data))

    assert read_request(tmp_path / "request.json") == request


@pytest.mark.parametrize(
    ("family", "counts"),
    [
        ("qwen3_moe", {"attention": 8, "expert": 4}),
        ("glm4_moe", {"attention": 12, "expert": 4, "shared_expert": 6, "dense": 3}),
        ("deepseek_v3", {"attention": 15, "expert": 4, "shared_expert": 6, "dense": 3}),
        ("qwen3_5_moe", {"attention": 9, "expert": 4, "shared_expert": 6}),
    ],
)
def test_targets_on_fused_experts_by_hand(family: str, counts: dict[str, int]) -> None:
    targets = expected_targets(build(family, geometry("distinct"), "published"), recipe("lora"), Form(fused=True))

    assert {kind: len(members) for kind, members in targets.items()} == counts


@pytest.mark.parametrize(
    ("name", "per_layer"), [("lora-experts", 24), ("lora-gate-up-only", 16), ("lora-down-only", 8)]
)
def test_targets_on_linears_by_hand(name: str, per_layer: int) -> None:
    """Eight experts with gate, up and down; gate_up_proj is the first two."""
    targets = expected_targets(build("qwen3_moe", geometry("distinct"), "published"), recipe(name), Form(fused=False))

    assert {kind: len(members) for kind, members in targets.items()} == {"expert": 2 * per_layer}
    assert all(parameter is None for _, parameter in targets["expert"])


@pytest.mark.parametrize(
    ("family", "counts"),
    [
        ("qwen3_moe", {"attention": 8}),
        ("glm4_moe", {"attention": 12}),
        ("deepseek_v3", {"attention": 15}),
    ],
)
def test_dora_leaves_out_what_peft_would_take_for_experts(family: str, counts: dict[str, int]) -> None:
    checkpoint, dora = build(family, geometry("distinct"), "published"), recipe("lora-dora")
    everywhere = expected_targets(checkpoint, dora, Form(fused=True))
    rewritten = expected_targets(checkpoint, dora, Form(fused=True, rewritten=True))

    assert {kind: len(members) for kind, members in rewritten.items()} == counts
    assert {kind for kind in everywhere if kind not in rewritten} == (
        set() if family == "qwen3_moe" else {"shared_expert", "dense"}
    )
    assert expected_targets(checkpoint, recipe("lora"), Form(fused=True, rewritten=True)) == expected_targets(
        checkpoint, recipe("lora"), Form(fused=True)
    ), "a plain LoRA reaches all of them, through their parameters"


@pytest.mark.parametrize(
    ("name", "rank", "scaling"),
    [
        ("model.layers.0.self_attn.k_proj", 3, 6 / 3**0.5),
        ("model.layers.0.self_attn.q_b_proj", 5, 6 / 5**0.5),
        ("model.layers.0.self_attn.o_proj", 3, 9 / 3**0.5),
        ("model.layers.0.mlp.experts.gate_up_proj", 2, 6 / 2**0.5),
        ("model.layers.0.mlp.experts.down_proj", 3, 4 / 3**0.5),
        ("model.layers.0.mlp.experts.7.up_proj", 2, 6 / 2**0.5),
        ("model.layers.0.mlp.experts.7.down_proj", 3, 3 / 3**0.5),
        ("model.layers.0.mlp.shared_experts.down_proj", 3, 2 / 3**0.5),
        ("model.layers.0.mlp.down_proj.weight", 3, 6 / 3**0.5),
    ],
)
def test_rank_and_scaling_by_name_by_hand(name: str, rank: int, scaling: float) -> None:
    found = rank_and_scaling(name, recipe("lora-patterns"), 3)

    assert found == (rank, pytest.approx(scaling))
    assert rank_and_scaling(name, recipe("lora"), 3) == (3, 2.0)


def test_no_two_patterns_fit_one_name() -> None:
    """PEFT saves them in another order than they were given in."""
    for fused in (True, False):
        for family in ("qwen3_moe", "glm4_moe", "deepseek_v3", "qwen3_5_moe"):
            checkpoint, plan = build(family, geometry("distinct"), "published"), recipe("lora-patterns")
            for members in expected_targets(checkpoint, plan, Form(fused=fused)).values():
                for module, parameter in members:
                    name = ".".join(filter(None, (module, parameter)))
                    for patterns in (plan.rank_pattern, plan.alpha_pattern):
                        assert sum(bool(re.search(rf"(^|\.)({pattern})$", name)) for pattern in patterns) <= 1


@pytest.mark.parametrize(
    ("part", "name", "found"),
    [
        (None, "default", {"torch.float32"}),
        ("lora_A", "default", {"torch.float32", "torch.bfloat16"}),
        ("lora_B", "default", {"torch.float32", "torch.bfloat16"}),
        ("lora_magnitude_vector", "default", {"torch.float32", "torch.bfloat16"}),
        ("lora_A", "frozen", {"torch.float32"}),
    ],
)
def test_every_part_of_one_adapter_has_a_dtype(part: str | None, name: str, found: set[str]) -> None:
    parts = ("lora_A", "lora_B", "lora_magnitude_vector")
    layer: Any = SimpleNamespace(
        **{it: {adapter: torch.nn.Linear(2, 2, bias=False) for adapter in ("default", "frozen")} for it in parts},
        lora_embedding_A={},
    )
    if part is not None:
        getattr(layer, part)[name].bfloat16()

    assert dtypes_of(layer, "default") == found


def test_the_factors_of_an_embedding_s_lora_are_no_modules() -> None:
    factors = {"default": torch.nn.Parameter(torch.zeros(2, 4, dtype=torch.bfloat16))}
    layer: Any = SimpleNamespace(lora_A={}, lora_B={}, lora_embedding_A=factors, lora_embedding_B=factors)

    assert dtypes_of(layer, "default") == {"torch.bfloat16"}


def test_a_recipe_of_dora_on_experts_is_refused() -> None:
    with pytest.raises(ValueError, match="no DoRA and no dropout on fused experts"):
        dataclasses.replace(recipe("lora"), use_dora=True)
    with pytest.raises(ValueError, match="no DoRA and no dropout on fused experts"):
        dataclasses.replace(recipe("lora"), dropout=0.1)


def test_a_recipe_whose_earlier_adapter_has_what_is_not_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="an earlier adapter"):
        dataclasses.replace(recipe("lora-attention"), frozen=("dense",))


def test_prediction_layers_are_never_targeted() -> None:
    for family in ("glm4_moe", "deepseek_v3", "qwen3_5_moe"):
        targets = expected_targets(build(family, geometry("distinct"), "published"), recipe("lora"), Form(fused=True))
        modules = {module for kind in targets.values() for module, _ in kind}

        assert not [module for module in modules if ".layers.3." in module or module.startswith("mtp")]


def test_a_second_load_is_another_than_the_first() -> None:
    second, plain = recipe("qlora8-after-qlora4"), recipe("plain-after-qlora4")

    assert (second.loaded_before, second.quantization) == (recipe("qlora4").quantization, recipe("qlora8").quantization)
    assert plain.loaded_before is not None
    assert plain.quantization is None


def test_a_resized_vocabulary_goes_with_a_plain_lora_alone() -> None:
    with pytest.raises(ValueError, match="resized"):
        dataclasses.replace(recipe("qlora4"), new_tokens=1)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_say_what_they_are(name: str) -> None:
    found = recipe(name)

    assert found.summary
    assert found.kinds
    assert found.steps >= 4
    assert set(found.expert_roles) <= {"gate_up_proj", "down_proj"}


@dataclasses.dataclass
class _OldConfig:
    """An SFTConfig from before ``max_length``."""

    output_dir: str = ""
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    max_steps: int = -1
    learning_rate: float = 0.0
    lr_scheduler_type: str = ""
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optim: str = ""
    bf16: bool = True
    fp16: bool = False
    gradient_checkpointing: bool = True
    max_seq_length: int = 1024
    packing: bool = False
    report_to: list[str] = dataclasses.field(default_factory=list)
    logging_steps: int = 1
    save_strategy: str = ""
    disable_tqdm: bool = False
    dataloader_pin_memory: bool = True
    dataloader_num_workers: int = 0
    seed: int = 0
    data_seed: int = 0


def test_a_renamed_option_is_given_under_its_old_name(tmp_path: Path) -> None:
    options = trainer_options(_OldConfig, _request(tmp_path), recipe("lora"), tmp_path)

    assert options["max_seq_length"] == TRAINING_LENGTH
    assert "max_length" not in options
    assert "use_cpu" not in options, "optional, and absent from this release"
    assert (options["bf16"], options["gradient_checkpointing"]) == (False, False)


def test_an_option_that_went_away_is_an_error_and_not_ignored(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Newer:
        output_dir: str = ""

    with pytest.raises(TypeError, match="packing"):
        trainer_options(Newer, _request(tmp_path), recipe("lora"), tmp_path)


def test_training_and_evaluation_tokens_are_ordinary_tokens_and_differ() -> None:
    training, prompts = training_sequences(104, 0), evaluation_prompts(104, 0)

    assert len(training) == TRAINING_SEQUENCES
    assert {len(sequence) for sequence in training} == {TRAINING_LENGTH}
    assert all(4 <= token < 104 for sequence in training for token in sequence)
    assert int(prompts.min()) >= 4
    assert int(prompts.max()) < 104
    assert prompts[0, :8].tolist() != training[0][:8]


def test_a_stage_that_raises_is_recorded_with_its_cause_and_place(tmp_path: Path) -> None:
    observation = Observation(tmp_path / "o.json")
    with pytest.raises(StageStoppedError), observation.stage("load"):
        raise RuntimeError("no weights")
    stage = Observation.load(tmp_path / "o.json").data["stages"]["load"]

    assert stage["ended"] == "raised"
    assert stage["reason"].startswith("RuntimeError: no weights [")
    assert "test_worker_stages.py" in stage["reason"]


def test_unsupported_is_the_library_s_own_word(tmp_path: Path) -> None:
    observation = Observation(tmp_path / "o.json")
    with pytest.raises(StageStoppedError), observation.stage("load"):
        raise UnsupportedError("no such architecture")

    stage = observation.data["stages"]["load"]

    assert (stage["ended"], stage["reason"]) == ("unsupported", "no such architecture")


def test_a_stage_with_failed_checks_has_completed(tmp_path: Path) -> None:
    """What failed checks amount to is the host's to decide."""
    observation = Observation(tmp_path / "o.json")
    with observation.stage("compare"):
        observation.check("kl", "compare", 0.5, "<= 1e-09", passed=False)

    assert observation.completed("compare")
    assert observation.data["stages"]["compare"]["ended"] == "completed"


@pytest.mark.parametrize(("name", "stage"), [("vibes", "compare"), ("kl", "train"), ("control:base-copied", "compare")])
def test_a_check_that_the_contract_does_not_know_is_refused(tmp_path: Path, name: str, stage: StageName) -> None:
    observation = Observation(tmp_path / "o.json")

    with pytest.raises(KeyError, match=r"harness/contract/checks\.py"):
        observation.check(name, stage, 1, "any", passed=True)


def test_what_a_child_found_is_seen_by_its_parent(tmp_path: Path) -> None:
    observation = Observation(tmp_path / "o.json")

    def stages(seen: Observation) -> None:
        with seen.stage("build"):
            seen.data["base_sha256"] = "abc"

    run_in_child(observation, stages, names=("build",))

    assert observation.data["base_sha256"] == "abc"
    assert observation.data["stages"]["build"]["ended"] == "completed"


def test_a_child_that_dies_is_a_crash_of_the_stage_it_was_in(tmp_path: Path) -> None:
    observation = Observation(tmp_path / "o.json")

    def stages(seen: Observation) -> None:
        with seen.stage("build"):
            pass
        with seen.stage("load"):
            os.kill(os.getpid(), signal.SIGKILL)

    run_in_child(observation, stages, names=("build", "load"))

    assert observation.data["stages"]["build"]["ended"] == "completed"
    assert observation.data["stages"]["load"]["ended"] == "died"
    assert observation.data["stages"]["load"]["signal"] == signal.SIGKILL
    assert "signal 9 (SIGKILL" in observation.data["stages"]["load"]["reason"]


def test_a_child_that_leaves_in_the_middle_of_a_stage_is_an_error(tmp_path: Path) -> None:
    observation = Observation(tmp_path / "o.json")

    def stages(seen: Observation) -> None:
        with seen.stage("train"):
            os._exit(0)

    run_in_child(observation, stages, names=("train",))

    assert observation.data["stages"]["train"]["ended"] == "died"
    assert observation.data["stages"]["train"]["signal"] is None


def test_a_child_that_dies_between_two_stages_never_began_the_second(tmp_path: Path) -> None:
    observation = Observation(tmp_path / "o.json")

    def stages(seen: Observation) -> None:
        with seen.stage("load"):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    run_in_child(observation, stages, names=("load", "attach", "train"))

    assert {name: stage["ended"] for name, stage in observation.data["stages"].items()} == {
        "load": "completed",
        "attach": "died",
    }


def test_an_error_says_where_it_came_from() -> None:
    try:
        json.loads("{")
    except json.JSONDecodeError as error:
        text = describe(error)

    assert text.startswith("JSONDecodeError: ")
    assert "decoder.py" in text


def test_the_network_hook_lets_local_sockets_through() -> None:
    with socket.socket(socket.AF_UNIX) as local, socket.socket(socket.AF_INET) as remote:
        _hook("socket.connect", (local, "/nowhere"))
        with pytest.raises(NetworkTouchedError, match=r"192\.0\.2\.1"):
            _hook("socket.connect", (remote, ("192.0.2.1", 80)))


def test_the_dtypes_that_the_lora_was_trained_in_are_kept_and_counted(tmp_path: Path) -> None:
    dtypes = {
        "q_proj.lora_A.default.weight": "torch.float32", "q_proj.lora_B.default.weight": "torch.bfloat16",
        "k_proj.lora_A.default.weight": "torch.bfloat16", "k_proj.weight": "torch.uint8",
    }  # fmt: skip
    model = SimpleNamespace(named_parameters=lambda: [(n, SimpleNamespace(dtype=d)) for n, d in dtypes.items()])
    observation = Observation(tmp_path / "o.json")
    observation.data["training"] = {"steps": 4}

    save_lora_dtypes(observation, model, tmp_path)

    assert observation.data["training"] == {"steps": 4, "lora_dtypes": {"bfloat16": 2, "float32": 1}}
    assert json.loads((tmp_path / LORA_DTYPES).read_text()) == {
        "q_proj.lora_A.default.weight": "float32", "q_proj.lora_B.default.weight": "bfloat16",
        "k_proj.lora_A.default.weight": "bfloat16",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023", "535.129.03"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", "580.65.06"),
    ],
)
def test_the_driver_is_named_in_the_kernel_s_words(tmp_path: Path, line: str, driver: str) -> None:
    (tmp_path / "version").write_text(f"{line}\nGCC version:  gcc 12.3.0\n")

    assert _gpu_versions("13.0", tmp_path / "version") == {"cuda": "13.0", "nvidia-driver": driver}
    assert _gpu_versions("13.0", tmp_path / "absent") == {"cuda": "13.0"}
