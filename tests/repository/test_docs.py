"""What the documents say is so: links lead somewhere, commands parse, files exist, names and numbers are the code's."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pydantic import BaseModel
from typer.testing import CliRunner

from harness.cli import app
from harness.cli.reference import Command, commands, main, render
from harness.contract.facts import CellFacts
from harness.contract.outcomes import OUTCOMES
from harness.contract.stages import STAGES
from harness.envs.child_environment import child_environment
from harness.errors import HarnessError
from harness.execution.deadman import TOKEN
from harness.matrix.catalogue import read_catalogue
from harness.merge.adapter.config import INIT_CHANGES_BASE
from harness.merge.auditing.report import AuditReport
from harness.merge.auditing.tensor_verdict import TensorVerdict
from harness.merge.errors import MergeError
from harness.merge.run.report import MergeReport, Resumed
from harness.result import CellResult
from harness.worker.checkpoints.geometry import geometry

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
SHELL = {"sh", "bash", "yaml"}


@cache
def tokens(page: Path) -> tuple[Token, ...]:
    """Return a page's block tokens; inline ones are their children."""
    return tuple(MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8")))


def inline(page: Path, kind: str) -> Iterator[Token]:
    for block in tokens(page):
        yield from (token for token in block.children or () if token.type == kind)


def code_spans(page: Path) -> list[str]:
    return [token.content for token in inline(page, "code_inline")]


def code_blocks(page: Path, languages: set[str]) -> list[str]:
    return [block.content for block in tokens(page) if block.type == "fence" and block.info.strip() in languages]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found = set()
    for heading, content in zip(tokens(page), tokens(page)[1:], strict=False):
        if heading.type == "heading_open":
            text = "".join(token.content for token in content.children or ())
            found.add(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    dead = []
    for link in inline(page, "link_open"):
        target = str(link.attrs["href"])
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.is_relative_to(ROOT) or not there.exists() or (anchor and anchor not in anchors(there)):
            dead.append(target)
    assert dead == []


def test_every_page_can_be_found_from_the_index() -> None:
    index = DOCS / "README.md"
    indexes = (index, DOCS / "findings" / "README.md")
    linked = {
        (page.parent / str(link.attrs["href"])).resolve() for page in indexes for link in inline(page, "link_open")
    }
    assert {page for page in DOCS.rglob("*.md") if page != index} <= linked


# Commands


def command_lines(page: Path) -> Iterator[list[str]]:
    """Yield the words after ``harness`` of every command line of the program that a page shows."""
    lines = [line for block in code_blocks(page, SHELL) for line in block.replace("\\\n", " ").splitlines()]
    lines += [
        span for span in code_spans(page) if re.match(r"harness [a-z]", span) or span.startswith("nox -s harness")
    ]
    for line in lines:
        shown = re.sub(r"nox -s harness -- ", "harness ", re.sub(r"\$\{\{.*?\}\}", "", line))
        for found in re.finditer(r"(?<![\w./-])harness (?P<words>(?:'[^'\n]*'|[^;|&>)#'])*)", shown):
            yield shlex.split(found["words"].rstrip('"').rstrip())


@cache
def families_shown() -> tuple[str, ...]:
    """Return the families without a file that the published table has: any other name in the docs is a slip."""
    table = (ROOT / "reports" / "families" / "families.md").read_text("utf-8")
    return tuple(re.findall(r"^\| ([a-z0-9_]+) \|", table, re.MULTILINE))


def choices() -> dict[str, tuple[str, ...]]:
    """Return what may follow an option that takes a name."""
    catalogue = read_catalogue()
    return {
        "--model": (*catalogue.families, *families_shown()),
        "--recipe": catalogue.recipes,
        "--geometry": catalogue.geometries,
        "--variant": catalogue.all_variants,
        "--profile": tuple(tomllib.loads((ROOT / "matrix.toml").read_text("utf-8"))["profiles"]),
    }


COMMANDS = commands()


def find(words: list[str]) -> Command | None:
    """Return the command that a line names; the longest one that fits."""
    fitting = [command for command in COMMANDS if tuple(words[: len(command.words)]) == command.words]
    return max(fitting, key=lambda command: len(command.words), default=None)


def problems(words: list[str]) -> list[str]:
    """Return what is wrong with a command line."""
    command = find(words)
    if command is None:
        return [] if words == ["--version"] else ["no such command"]
    known = choices()
    found, arguments = [], []
    rest = words[len(command.words) :]
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            arguments.append(word)
        elif word not in command.option_names:
            found.append(f"no option {word}")
        elif word not in command.flags:
            if not rest:
                found.append(f"{word} without a value")
            elif (value := rest.pop(0)) not in known.get(word, (value,)):
                found.append(f"{word} {value}")
    if arguments and all(item.names for item in command.parameters):
        found.append(f"takes no arguments: {arguments}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_command_line_shown_parses(name: str) -> None:
    wrong = {" ".join(words): found for words in command_lines(ROOT / name) if words and (found := problems(words))}
    assert wrong == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_command_line_in_a_shell_block_is_complete(name: str) -> None:
    """Inline code may name a command; a block is there to be pasted."""
    lacking = []
    for block in code_blocks(ROOT / name, {"sh", "bash"}):
        for found in re.finditer(r"^harness (?P<words>(?:'[^'\n]*'|[^;|&>#'\n])*)", block, flags=re.MULTILINE):
            words = shlex.split(found["words"])
            command = find(words)
            needed = [item.names for item in command.parameters if item.required and item.names] if command else []
            lacking += [f"{found[0]}: {names}" for names in needed if not set(names) & set(words)]
    assert lacking == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("run --model qwen3_moe --peft 0.19.1", []),
        ("run --model qwen4_moe", ["--model qwen4_moe"]),
        ("run --modell qwen3_moe", ["no option --modell"]),
        ("env list", []),
        ("env purge", ["no such command"]),
        ("run --model qwen3_moe extra", ["takes no arguments: ['extra']"]),
        ("matrix --profile", ["--profile without a value"]),
    ],
)
def test_a_wrong_command_line_would_be_noticed(line: str, wrong: list[str]) -> None:
    found = problems(line.split())
    assert found[: len(wrong)] == wrong
    assert bool(found) == bool(wrong)


def test_commands_are_shown_at_all() -> None:
    assert sum(1 for page in PAGES for _ in command_lines(page)) > 40


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: "-".join(command.words))
def test_the_reference_reads_what_the_program_takes(command: Command) -> None:
    """The page is made from signatures. The program's own help must have the same options, and no others."""
    runner = CliRunner(env={"COLUMNS": "250", "TERM": "dumb", "NO_COLOR": "1"})
    shown = runner.invoke(app, [*command.words, "--help"])
    assert shown.exit_code == 0
    options = set(re.findall(r"^\W*(?:\*\s+)?(--[a-z-]+)", shown.output, flags=re.MULTILINE))
    assert options | {"-h"} == command.option_names


def test_the_page_of_the_command_line_is_up_to_date(tmp_path: Path) -> None:
    page = DOCS / "reference" / "cli.md"
    assert page.read_text("utf-8") == render(), "python -m harness.cli.reference --write"
    assert main(["--check", "--page", str(page)]) == 0
    assert main(["--check", "--page", str(tmp_path / "cli.md")]) == 1
    assert main(["--write", "--page", str(tmp_path / "cli.md")]) == 0
    assert main(["--check", "--page", str(tmp_path / "cli.md")]) == 0


@pytest.mark.parametrize(
    ("command", "option", "folder", "defining"),
    [
        ("run", "--model", "harness/worker/checkpoints/families", r"^def build\("),
        ("run", "--recipe", "harness/worker/recipes", "^RECIPE"),
        ("run", "--engine", "harness/engines", "^ENGINE"),
        ("matrix", "--executor", "harness/execution/executors", "^(def )?runner"),
        ("bench", "--only", "harness/bench/cases", "^ORDER"),
    ],
)
def test_the_terminal_names_a_folder_s_files_and_the_page_the_folder(
    command: str, option: str, folder: str, defining: str
) -> None:
    """So a file that is added changes no generated page."""
    runner = CliRunner(env={"COLUMNS": "1000", "TERM": "dumb", "NO_COLOR": "1"})
    shown = re.search(rf"{option} .*?One of: (.*?)\.", runner.invoke(app, [command, "--help"]).output)
    (said,) = (
        parameter.help
        for item in commands()
        for parameter in item.parameters
        if item.words == (command,) and option in parameter.names
    )
    modules = (ROOT / folder).glob("[!_]*.py")
    files = {path.stem for path in modules if re.search(defining, path.read_text("utf-8"), re.MULTILINE)}

    assert shown is not None
    assert {name.replace("-", "_") for name in shown[1].split(", ")} == files
    assert f"One of the names of the files in `{folder}`, which `--help` lists." in said


def sessions() -> set[str]:
    """Return the names of the sessions in noxfile.py."""
    tree = ast.parse((ROOT / "noxfile.py").read_text("utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node.name for node in functions if any("session" in ast.unparse(item) for item in node.decorator_list)}


@pytest.mark.parametrize("name", NAMES)
def test_every_session_named_exists(name: str) -> None:
    page = ROOT / name
    text = "\n".join([*code_blocks(page, SHELL), *code_spans(page)])
    named = [word for found in re.findall(r"nox -s ((?:[a-z_]+\b(?! *=) ?)+)", text) for word in found.split()]
    assert set(named) <= sessions()


@pytest.mark.parametrize("name", NAMES)
def test_every_module_that_is_to_be_run_exists(name: str) -> None:
    page = ROOT / name
    text = "\n".join([*code_blocks(page, SHELL), *code_spans(page)])
    for module in re.findall(r"python -m (harness[a-z_.]*)", text):
        assert importlib.util.find_spec(module) is not None, module


def test_the_test_command_of_the_readme_is_what_ci_runs() -> None:
    readme = [
        line.partition("#")[0].strip()
        for block in code_blocks(ROOT / "README.md", SHELL)
        for line in block.splitlines()
    ]
    (command,) = [line for line in readme if line.startswith("pip install") and line.endswith("nox -s tests")]
    assert command in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


# Files


@pytest.mark.parametrize("name", NAMES)
def test_every_file_named_exists(name: str) -> None:
    page = ROOT / name
    text = "\n".join([*code_spans(page), *code_blocks(page, {"text", "sh"})])
    paths = re.findall(r"(?<![\w./<>-])((?:harness|tests|docs|requirements)/[\w./*<>-]*)", text)
    missing = {path for path in paths if not re.search(r"[<*]", path) and not (ROOT / path.rstrip(".")).exists()}
    assert missing == set()


def tracked() -> list[Path]:
    """Return the files that are, or are about to be, in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


MACHINE = [f"/{name}/" for name in ("root", "work", "opt")] + [f"/{'tmp'}/{name}" for name in ("x", "dev", "docs")]
HOSTS = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("download", "pytorch", "org"))]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="what is tracked is known in a git checkout only")
def test_no_file_names_a_place_of_one_machine_or_a_package_index() -> None:
    pattern = re.compile("|".join([*(rf"(?<![\w.>}}]){re.escape(text)}" for text in MACHINE), *map(re.escape, HOSTS)]))
    found = []
    for path in tracked():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # a picture, say
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert found == []


# What the pages say of the code


def table_names(page: Path, heading: str) -> set[str]:
    """Return the code spans in the first column of the tables under a heading."""
    found: set[str] = set()
    here, column = False, 0
    for block, content in zip(tokens(page), tokens(page)[1:], strict=False):
        if block.type == "heading_open":
            here = content.content.strip("`# ") == heading
        elif block.type == "tr_open":
            column = 0
        elif block.type == "td_open":
            column += 1
            if here and column == 1:
                found |= {token.content for token in content.children or () if token.type == "code_inline"}
    return found


def test_every_field_of_a_result_is_described() -> None:
    page = DOCS / "reference" / "result.md"
    assert table_names(page, "Top level") == set(CellResult.model_fields)
    spans = set(code_spans(page))
    assert {field.name for field in dataclasses.fields(CellFacts)} <= spans
    for name in ("merge", "adapter", "metrics", "training", "stages", "checks", "controls", "cell"):
        for model in _models(CellResult.model_fields[name].annotation):
            undescribed = set(model.model_fields) - spans
            assert undescribed == set(), name
    assert set(STAGES) <= spans


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]


@pytest.mark.parametrize(
    ("page", "written"),
    [
        ("audit.md", AuditReport(rows=(), bytes_read=0)),
        (
            "audit.md",
            TensorVerdict(
                key="k", kind="expert", layer=0, expert=None, verdict="partial", detail="d", scale=1.0, exact_share=1.0,
                stored_as=("s",), merged_dtype="F32", slices={"partial": 1}, at_fault=(0,),
            ),
        ),
        (
            "merge.md",
            MergeReport(
                by_kind={}, io_layout=None, b_packing=None, notes=(), files_left_out=(), bytes_written=0,
                bytes_decoded=0, resumed=None,
            ),
        ),
        ("merge.md", Resumed(shards=1, kept=0, rejected=0, foreign=0)),
    ],
)  # fmt: skip
def test_every_field_of_what_merge_and_audit_write_is_described(
    page: str, written: AuditReport | TensorVerdict | MergeReport | Resumed
) -> None:
    described = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8").partition("## JSON")[2]

    assert [name for name in written.to_json() if f"`{name}`" not in described.partition("\n## ")[0]] == []


def test_every_outcome_is_explained_in_order() -> None:
    text = (DOCS / "explanation" / "verdicts.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z]+)` \|", text.partition("## Statuses")[0], flags=re.MULTILINE)
    assert tuple(rows) == OUTCOMES


def test_the_test_of_a_stage_tests_it() -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## The test of a stage")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*) \| `(.*)` \|$", section, flags=re.MULTILINE)
    named = [(name, test.replace("<file>", name)) for names, test in rows for name in re.findall(r"`(\w+)`", names)]
    uses = {test: (ROOT / "tests" / "unit" / "worker" / test).read_text("utf-8") for _, test in named}

    assert named
    for name, test in named:
        assert (ROOT / "harness" / "worker" / "stages" / f"{name}.py").is_file(), name
        assert re.search(rf"harness\.worker\.stages(\.{name} import| import .*\b{name}\b)", uses[test]), (name, test)


def test_every_exit_code_is_listed() -> None:
    text = (DOCS / "reference" / "exit-codes.md").read_text("utf-8")
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)}
    assert listed == {0} | _codes(HarnessError) | _codes(MergeError)


def _codes(error: type[HarnessError | MergeError]) -> set[int]:
    """Return the codes of an error and its subclasses; those that take the engine's own code have none themselves."""
    return {error.exit_code}.union(*(_codes(inner) for inner in error.__subclasses__()))


def test_every_variable_that_reaches_a_cell_is_listed(tmp_path: Path) -> None:
    passed = {"CUDA_HOME": "a", "NVIDIA_VISIBLE_DEVICES": "b", "LD_LIBRARY_PATH": "c", "SECRET": "d"}
    given = {
        name
        for device in ("cpu", "cuda")
        for name in child_environment(scratch=tmp_path, device="cuda" if device == "cuda" else "cpu", source=passed)
    }
    listed = table_names(DOCS / "reference" / "environments.md", "What a cell sees")
    assert listed == (given - {"CUDA_HOME", "NVIDIA_VISIBLE_DEVICES"}) | {"CUDA_*", "NVIDIA_*", TOKEN}


def test_the_names_and_sizes_of_checkpoints_are_the_codes() -> None:
    page = DOCS / "reference" / "checkpoints.md"
    catalogue = read_catalogue()
    assert table_names(page, "Families") == set(catalogue.families)
    assert table_names(page, "Recipes") == set(catalogue.recipes)
    assert set(catalogue.all_variants) <= set(code_spans(page))
    rows = re.findall(
        r"^\| `([a-z-]+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", page.read_text("utf-8"), flags=re.MULTILINE
    )
    assert [row[0] for row in rows] == list(catalogue.geometries)
    for name, *sizes in rows:
        sizes_of = geometry(name)
        columns = (sizes_of.hidden, sizes_of.moe_intermediate, sizes_of.num_experts, sizes_of.rank)
        assert tuple(map(int, sizes)) == columns, name


def test_what_the_merge_refuses_is_listed() -> None:
    spans = set(code_spans(DOCS / "reference" / "merge.md"))
    assert set(INIT_CHANGES_BASE) <= spans
