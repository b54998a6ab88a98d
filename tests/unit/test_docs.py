"""The documentation against the code: options, commands, files, functions and links that it names exist."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from pfcluster.cli.commands import COMMANDS
from pfcluster.config import RunConfig
from pfcluster.evaluate import poker_faces
from pfcluster.report.page import LOSSES
from pfcluster.runs import folder, metrics_file
from pfcluster.sweep.spec import METRICS
from pfcluster.training import run
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks" / "results").glob("*.md"),
    ]
)
SOURCES = sorted(
    path
    for top in ("pfcluster", "jobs", "shards", "tune", "tests", "benchmarks")
    for path in (ROOT / top).rglob("*")
    if path.suffix in (".py", ".j2", ".toml") and path != Path(__file__).resolve()
)
OTHER_PROGRAMS = {  # pip, mkdocs, sbatch, torchrun, apt-get, hf, ray, pytest
    *("array", "wrap", "nnodes", "nproc-per-node", "rdzv-backend", "rdzv-endpoint", "no-install-recommends"),
    *("repo-type", "head", "strict", "container-image", "check", "nv", "logdir"),
    *("dest", "no-deps", "no-index", "find-links", "no-build-isolation"),
}
SECTIONS = "|".join(
    field.name for field in dataclasses.fields(RunConfig) if field.default_factory is not dataclasses.MISSING
)


@cache
def config_fields(cls: Any = RunConfig, prefix: str = "") -> frozenset[str]:
    """Dotted names of all fields, sections included, and of the options that switch one off."""
    names = set()
    for name, hint in get_type_hints(cls).items():
        names.add(prefix + name)
        if hint is bool:
            names.add(f"{prefix}no_{name}")  # --section.no-name
        if dataclasses.is_dataclass(hint):
            names |= config_fields(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
    return frozenset(names)


@cache
def plain_options() -> frozenset[str]:
    """Options of all commands, benchmarks and test tools: fields of dataclasses named ...Options, and argparse's."""
    names = {name.replace("_", "-") for name in config_fields() if "." not in name} | OTHER_PROGRAMS
    for path in SOURCES:
        folder_name = path.relative_to(ROOT).parts[:2]
        if path.suffix != ".py" or (folder_name[0] == "tests" and folder_name[1] != "cluster"):
            continue
        text = path.read_text()
        names |= set(re.findall(r'"--([a-z][a-z0-9-]*)"', text))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and re.search("Options|Command$", node.name):
                fields = [each.target.id for each in node.body if isinstance(each, ast.AnnAssign)]  # type: ignore[union-attr]
                names |= {name.replace("_", "-") for name in fields}
                names |= {f"no-{name.replace('_', '-')}" for name in fields}
    return frozenset(names | {"help", "version"})


def code_of(text: str) -> str:
    """The code in a page: indented blocks, fences and spans in backticks, one per line."""
    fences = re.findall(r"^```.*?$(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^(?: {4}|\t).+", text, re.MULTILINE)
    return "\n".join([*fences, *blocks, *re.findall(r"`([^`\n]+)`", text)])


def unknown_options(text: str) -> list[str]:
    """Options in a text that no command has, and config fields that do not exist."""
    code = code_of(text)
    code = code.replace("--section.field", "")
    options = re.findall(r"(?<![\w-])--([a-z][a-z0-9-]*(?:\.[a-z0-9-]+)*)", code)
    unknown = [
        f"--{name}"
        for name in options
        if (name.replace("-", "_") not in config_fields() if "." in name else name not in plain_options())
    ]
    unknown += re.findall(r"--[a-z.-]+ (?:True|False)\b", code)  # switches take no value
    named = re.findall(rf"(?<![\w./-])((?:{SECTIONS})\.[a-z_0-9.]+)(?![\w(])", code)
    files = (".json", ".md", ".onnx", ".pt2", ".py", ".pth", ".png", ".safetensors", ".toml")
    return unknown + [name for name in named if not name.endswith(files) and name.rstrip(".") not in config_fields()]


def unknown_commands(text: str) -> list[str]:
    """Commands of `pfcluster` or jobs/launch.py that do not exist."""
    named = re.findall(r"(?:^|[\s`/])(?:pfcluster|jobs/launch\.py) +([a-z][a-z-]*)", code_of(text), re.MULTILINE)
    return [name for name in named if name not in COMMANDS]


def missing_files(text: str) -> list[str]:
    """Files of the repository that a text names, other than as outputs, and that do not exist; also `file.py: name`
    without that name.
    """
    tops = "docs|pfcluster|tests|benchmarks|jobs|shards|tune"
    paths = re.findall(
        rf"(?<![\w./-])(?<!--output )((?:{tops})/[\w./-]+\.(?:md|py|j2|toml|jpg|png|json|safetensors))\b", text
    )
    missing = [path for path in paths if not (ROOT / path).exists()]
    for path, name in re.findall(r"`(pfcluster/[\w/]+\.py): (\w+)`", text):
        source = (ROOT / path).read_text() if (ROOT / path).exists() else ""
        if not re.search(rf"^(?:def|class) {name}\b|^{name}\b.*=", source, re.MULTILINE):
            missing.append(f"{path}: {name}")
    return missing


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links to files that do not exist, and links to headings that a page does not have."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        headings = slugs(file.read_text()) if anchor and file.is_file() else {anchor}
        if not file.exists() or anchor not in headings:
            broken.append(target)
    return broken


def slugs(text: str) -> set[str]:
    """Anchors of a page's headings, as Python-Markdown makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    kept = [re.sub(r"[^\w\s-]", "", title.encode("ascii", "ignore").decode()).strip().lower() for title in titles]
    return {re.sub(r"[-\s]+", "-", title) for title in kept}


def names(paths: list[Path]) -> Iterator[Any]:
    for path in paths:
        yield pytest.param(path, id=str(path.relative_to(ROOT)))


@pytest.mark.parametrize("page", names(PAGES))
def test_page_names_existing_things(page: Path) -> None:
    text = page.read_text()
    if page.name != "CHANGELOG.md":  # which names options of the past
        assert not unknown_options(text)
    assert not unknown_commands(text)
    assert not missing_files(text)
    assert not broken_links(page, text)


def test_sources_name_existing_files_and_commands() -> None:
    wrong = {}
    for path in SOURCES:
        text = path.read_text()
        spans = "\n".join(f"`{span}`" for span in re.findall(r"`([^`\n]+)`", text))
        if bad := missing_files(text) + unknown_commands(spans):
            wrong[str(path.relative_to(ROOT))] = bad
    assert not wrong


def test_no_file_outside_the_repository_is_named() -> None:
    outside = re.compile(r"\b(?:METHOD|DESIGN|FIELD_NOTES)\.md")
    assert not [str(path) for path in [*PAGES, *SOURCES] if outside.search(path.read_text())]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_readme_and_contributing_name_every_room() -> None:
    rooms = [path.parent.name for path in (ROOT / "pfcluster").glob("*/__init__.py")]
    readme = (ROOT / "README.md").read_text()
    code_map = readme[readme.index("## Code map") : readme.index("## Tests")]
    table = (ROOT / "docs/contributing.md").read_text()
    assert not [room for room in rooms if not re.search(rf"\b{room}\b", code_map)]
    assert not [room for room in rooms if f"| `{room}` |" not in table]


def test_command_reference_is_complete() -> None:
    page = (ROOT / "docs/reference/cli.md").read_text()
    assert set(re.findall(r"^\| `pfcluster ([a-z-]+)", page, re.MULTILINE)) == set(COMMANDS)


def test_config_reference_has_every_class() -> None:
    page = (ROOT / "docs/reference/config.md").read_text()
    classes = {RunConfig.__name__}
    queue = [RunConfig]
    while queue:
        hints = [hint for hint in get_type_hints(queue.pop()).values() if dataclasses.is_dataclass(hint)]
        classes |= {hint.__name__ for hint in hints}  # type: ignore[union-attr]
        queue += hints  # type: ignore[arg-type]
    assert set(re.findall(r"^::: pfcluster\.config\.(\w+)$", page, re.MULTILINE)) == classes


def test_run_folder_reference_has_every_name() -> None:
    page = (ROOT / "docs/reference/run-folder.md").read_text()
    values = [value for name, value in vars(folder).items() if name.endswith(("_FILE", "_DIR", "_LOCK"))]
    assert values
    assert not [value for value in values if f"{value}" not in page]


def test_metrics_reference_has_every_metric_of_sweeps_and_poker_faces() -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text()
    assert not [name for name in {*METRICS, *poker_faces.COLUMNS, *LOSSES} if f"`{name}`" not in page]


@pytest.mark.parametrize("objective", ["mae", "finetune", "pf_mag"])
def test_references_have_every_metric_and_key_of_a_run(objective: str, tmp_path: Path) -> None:
    """The names in metrics.jsonl and result.json, with every optional loss term."""
    config = tiny.config(objective)
    weights = dataclasses.replace(config.pf_mag.weights, confusion=0.1, anchor=0.1, swap=0.1)
    pf_mag = dataclasses.replace(config.pf_mag, weights=weights, grad_norms_every=2)
    evaluate = dataclasses.replace(config.evaluate, n_probe_images=32)
    result = run(dataclasses.replace(config, pf_mag=pf_mag, evaluate=evaluate), tmp_path)
    metrics = {name for line in metrics_file.read_metrics(tmp_path) for name in line} - {"split", "step", "epoch"}
    page = (ROOT / "docs/reference/metrics.md").read_text()
    documented = set(re.findall(r"`([a-z_0-9*]+)`", page))
    gradients = {name.removesuffix("*") for name in documented if name.endswith("*")}
    assert not [name for name in metrics if name not in documented and not name.startswith(tuple(gradients))]
    page = (ROOT / "docs/reference/run-folder.md").read_text()
    table = page[page.index("## result.json") : page.index("## Other folders")]
    keys = {key for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}
    assert set(result) - {"format"} <= keys
    if objective == "pf_mag":
        assert keys <= set(result)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (unknown_options, "`--optim.lr 1`", "`--optim.rate 1`"),
        (unknown_options, "    pfcluster demo --dry-run", "    pfcluster demo --dry"),
        (unknown_options, "`--checkpoint.no-asynchronous`", "`--checkpoint.asynchronous False`"),
        (unknown_options, "`pf_mag.weights.adv`", "`pf_mag.weights.advers`"),
        (unknown_commands, "    .venv/bin/pfcluster demo", "    .venv/bin/pfcluster demonstrate"),
        (unknown_commands, "pfcluster is `pfcluster pf-mag`", "`python jobs/launch.py train`"),
        (missing_files, "docs/concepts/method.md, section 3", "docs/method.md, section 3"),
        (missing_files, "`pfcluster/models/losses.py: adversarial`", "`pfcluster/models/losses.py: adversary`"),
    ],
)
def test_checks_notice_what_does_not_exist(check: Any, good: str, bad: str) -> None:
    assert not check(good)
    assert check(bad)


def test_link_check_notices_missing_files_and_headings() -> None:
    page = ROOT / "docs" / "index.md"
    assert not broken_links(page, "[a](start.md) [b](concepts/method.md#symbols) [c](https://arxiv.org)")
    assert broken_links(page, "[a](begin.md) [b](concepts/method.md#signs)") == ["begin.md", "concepts/method.md#signs"]
