"""Outputs are made anew when their inputs have changed, whatever the clocks of the machines say."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from pfcluster.cli.main import main
from pfcluster.launch.plan import Command
from pfcluster.runs.folder import RESULT_FILE
from pfcluster.runs.output_inputs import input_states, is_made_from, record_inputs
from tests.studies import write_run


def test_an_output_is_made_from_its_inputs_until_their_content_changes(tmp_path: Path) -> None:
    output, inputs = tmp_path / "out" / "page.html", [tmp_path / "a.json", tmp_path / "b.json"]
    command = Command("c", tmp_path, (), produces=output, reads=tuple(inputs))
    assert not command.finished()
    output.parent.mkdir()
    for path in (output, *inputs):
        path.write_text("1")
    assert not command.finished()  # made by something that recorded nothing
    record_inputs(output, input_states(inputs))
    assert command.finished()
    os.utime(inputs[0])  # touched, or copied
    assert command.finished()
    ahead = time.time() + 3600
    os.utime(output, (ahead, ahead))
    inputs[0].write_text("2")
    assert not command.finished()
    record_inputs(output, input_states(inputs))
    inputs[1].unlink()
    assert not command.finished()
    assert not Command("c", tmp_path, ()).finished()
    assert Command("c", tmp_path, (), produces=output).finished()


def test_inputs_and_outputs_can_be_moved_together(tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "report").mkdir(parents=True)
    for name in ("input", "report/output"):
        (here / name).write_text("1")
    record_inputs(here / "report/output", input_states([here / "input"]))
    shutil.move(here, tmp_path / "there")
    assert is_made_from(tmp_path / "there/report/output", [tmp_path / "there/input"])


def test_a_report_is_made_anew_when_a_result_changed_under_a_clock_that_runs_ahead(
    tmp_path: Path,
) -> None:
    runs = [write_run(tmp_path / "study", "mae-vit", seed) for seed in (0, 1)]
    html = tmp_path / "study/report/report.html"
    command = Command(
        "report",
        html.parent,
        ("report", str(tmp_path / "study")),
        produces=html,
        reads=tuple(run / RESULT_FILE for run in runs),
    )
    assert main(list(command.arguments)) == 0
    assert command.finished()
    ahead = time.time() + 3600
    os.utime(html, (ahead, ahead))
    result = runs[1] / RESULT_FILE
    result.write_text(result.read_text().replace('"accuracy": 0.75', '"accuracy": 0.5'))
    assert not command.finished()
    assert main(list(command.arguments)) == 0
    assert command.finished()
