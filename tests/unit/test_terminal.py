"""Text of others (names, paths, errors of libraries) reaches the terminal as it is, also where it looks like markup."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from rich.progress import Progress
from rich.table import Table

from pfcluster.cli.doctor import show
from pfcluster.cli.main import main
from pfcluster.system.terminal import labelled, plain_column, plain_console

PACKAGE = Path(__file__).parents[2] / "pfcluster"
MARKUP_LIKE = ("exp[lr=1e-3]", "[/tmp/gloo/pair.cc:534]", "[bold]x[/bold]", "[/]", "[red]", "run:warning:2", r"a\[b")


@pytest.mark.parametrize("text", MARKUP_LIKE)
def test_text_is_printed_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    console = plain_console(width=100)
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    console.print(text)
    console.print(text, style="red")
    console.print(labelled("error", "red", text))
    console.print(table)
    console.rule(text)
    with Progress(plain_column("{task.description}"), console=console) as bar:
        bar.add_task(text)
    assert capsys.readouterr().out.count(text) == 9


def test_the_doctor_prints_an_error_of_gloo(capsys: pytest.CaptureFixture[str]) -> None:
    problem = "RuntimeError: [/pytorch/gloo/pair.cc:534] Connection closed by peer"
    row = {"backend": "ddp", "grad_accumulation_steps": 1, "ok": False, "weights": None, "problem": problem}
    results = {
        "ranks": 2,
        "hosts": {"node[1]": 2},
        "versions": {"torch": None},
        "auto": {"backend": "ddp", "reason": "[/]"},
        "parity": [row],
        "bandwidth": [],
        "folder": {"path": "runs[/]", "missing": []},
    }
    show(results, plain_console(width=200))
    out = capsys.readouterr().out
    for text in (problem, "node[1]", "runs[/]", "ddp: [/]"):
        assert text in out


@pytest.mark.parametrize("text", MARKUP_LIKE)
@pytest.mark.parametrize("command", ["report", "evaluate", "inspect", "status", "pictures", "consolidate", "logs"])
def test_an_error_names_the_path_as_it_was_given(command: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, text]) == 2
    assert text in capsys.readouterr().err


def test_only_one_module_makes_consoles_and_nothing_parses_markup() -> None:
    makers = {"Console", "TextColumn", "RichHandler", "Prompt", "Confirm"}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == PACKAGE / "system/terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                assert called not in makers | {"from_markup"}, f"{path}:{node.lineno} calls {called}"
                assert not any(word.arg == "markup" for word in node.keywords), f"{path}:{node.lineno}"
            if isinstance(node, ast.ImportFrom):
                assert node.module != "rich.markup", path
                assert node.module != "rich" or not any(name.name == "print" for name in node.names), path
