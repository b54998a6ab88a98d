"""What a report makes of runs' answers to their test samples, and of runs that have none."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from pfcluster.report.prediction_stats import compare_folders
from pfcluster.report.resampling import bootstrap, bootstrap_difference, mcnemar_p
from pfcluster.report.results import ReportError
from pfcluster.report.write import main_table, read_report, write_report
from tests.studies import Page, text, write_answers, write_group, write_run

N = 400


def right(share: float, seed: int, n: int = N) -> NDArray[np.bool_]:
    """So many of n samples, the easy ones first, the seed's own luck beside."""
    ease = np.random.default_rng(7).random(n)
    return np.asarray(ease + 0.1 * np.random.default_rng(seed).random(n) < share + 0.05)


def write_answered(study: Path, name: str, shares: list[float], **changes: object) -> list[Path]:
    return [
        write_run(study, name, seed, right=right(share, seed).tolist(), **changes)  # type: ignore[arg-type]
        for seed, share in enumerate(shares)
    ]


def test_intervals_and_tests_reach_every_table(tmp_path: Path) -> None:
    write_answered(tmp_path, "scratch", [0.60, 0.61, 0.62])
    write_answered(tmp_path, "better", [0.70, 0.71, 0.72])
    files = write_report(tmp_path)
    report = text(files)
    ours, theirs = (
        [right(share, seed) for seed, share in enumerate(shares)] for shares in ([0.70, 0.71, 0.72], [0.60, 0.61, 0.62])
    )
    group, difference = (
        bootstrap(100 * np.stack(ours)),
        bootstrap_difference(100 * np.stack(ours), 100 * np.stack(theirs)),
    )
    assert f"| {group.low:.2f} to {group.high:.2f} |" in report
    assert f"| {difference.low:+.2f} to {difference.high:+.2f} |" in report
    assert "### Against scratch, seed by seed on 400 test samples" in report
    assert "| 3 of 3 seeds |" in report
    assert "It holds for other test samples, too: over seeds and 400 test samples" in report
    assert "better recognises" in report
    assert "% of the 400 test faces (3 seeds)" in report
    row = next(csv.DictReader(files.comparisons_csv.open()))
    assert (row["name"], row["baseline"], row["seeds"], row["samples"]) == ("better", "scratch", "0 1 2", "400")
    assert float(row["accuracy.seeds_and_samples.low"]) == pytest.approx(difference.low)
    gained, lost = int(row["mcnemar.seed-0.gained"]), int(row["mcnemar.seed-0.lost"])
    assert gained == (ours[0] & ~theirs[0]).sum()
    assert float(row["mcnemar.seed-0.p"]) == pytest.approx(mcnemar_p(gained, lost))
    assert float(row["mcnemar.seed-0.holm_p"]) >= float(row["mcnemar.seed-0.p"])
    summary = {row["name"]: row for row in csv.DictReader(files.summary_csv.open())}
    assert float(summary["better"]["test.accuracy.seeds_and_samples.low"]) == pytest.approx(group.low / 100)
    page = "".join(Page(files.html.read_text()).words).replace("\u00a0", " ")
    assert "95 % over seeds and samples" in page
    assert "mean class accuracy %" in page


def test_mcnemar_is_corrected_over_all_comparisons(tmp_path: Path) -> None:
    write_answered(tmp_path, "scratch", [0.60, 0.60])
    write_answered(tmp_path, "a", [0.66, 0.66])
    alone = read_report(tmp_path).comparisons[0].answers
    write_answered(tmp_path, "b", [0.60, 0.60])
    together = read_report(tmp_path).comparisons[0].answers
    assert alone is not None
    assert together is not None
    smallest = min(test.p for test in alone.tests)
    assert min(alone.holm_p) == pytest.approx(2 * smallest)
    assert min(together.holm_p) == pytest.approx(4 * smallest)


def test_equal_answers_are_no_difference(tmp_path: Path) -> None:
    write_answered(tmp_path, "scratch", [0.6, 0.62])
    write_answered(tmp_path, "same", [0.6, 0.62])
    report = read_report(tmp_path)
    answers = report.comparisons[0].answers
    assert answers is not None
    assert (answers.difference.mean, answers.difference.low, answers.difference.high) == (0, 0, 0)
    assert answers.holm_p == (1.0, 1.0)
    assert "| 0 of 2 seeds |" in text(write_report(tmp_path))


def test_one_seed_is_over_samples_only_and_claims_nothing(tmp_path: Path) -> None:
    write_answered(tmp_path, "scratch", [0.6])
    write_answered(tmp_path, "better", [0.8])
    report = text(write_report(tmp_path))
    assert report.count(" † |") == 3
    assert "† One seed: over samples only." in report
    assert "one seed cannot tell an effect from chance. On 400 test samples its interval is" in report
    assert "McNemar's p < 0.001: that speaks of these two networks, not of how they were trained." in report
    assert "better is better" not in report


def test_a_difference_within_the_chance_of_samples_is_doubted(tmp_path: Path) -> None:
    # 1, 1 and 2 of 20 samples more: steady over seeds, and nothing on other samples.
    base = [True] * 10 + [False] * 10
    for seed, more in enumerate((1, 1, 2)):
        write_run(tmp_path, "scratch", seed, right=base)
        write_run(tmp_path, "better", seed, right=[True] * (10 + more) + [False] * (10 - more))
    for seed in range(3, 8):
        write_run(tmp_path, "scratch", seed, right=base)
        write_run(tmp_path, "better", seed, right=[True] * 11 + [False] * 9)
    report = text(write_report(tmp_path))
    assert "better scores better than scratch: +5.6" in report
    assert "points over 8 seeds" in report
    assert "so other samples may say otherwise" in report
    assert "| 0 of 8 seeds |" in report


def test_runs_without_answers_have_a_dash_and_a_reason(tmp_path: Path) -> None:
    write_answered(tmp_path, "scratch", [0.6, 0.61])
    write_group(tmp_path, "old", [0.7, 0.71], test={"n": N, "accuracy": 0.7, "macro_f1": 0.6})
    report = text(write_report(tmp_path))
    assert "| old | finetune | validation | 2 | 400 | 70.00 ± 0.00 | 70.00 to 70.00 | – | – |" in report
    reason = "answers are missing: old seed 0, old seed 1: no predictions.safetensors (an older run)."
    assert report.count(reason) == 2
    assert "old is better" in report


def test_one_run_without_answers_leaves_the_group_without_an_interval(tmp_path: Path) -> None:
    folders = write_answered(tmp_path, "scratch", [0.6, 0.61])
    (folders[1] / "predictions.safetensors").unlink()
    found, why = read_report(tmp_path).groups[0].over_samples
    assert found is None
    assert why == "scratch seed 1: no predictions.safetensors (an older run)"


@pytest.mark.parametrize("damage", ["cut", "another test"])
def test_damaged_answers_are_left_out_and_named(tmp_path: Path, damage: str) -> None:
    folder = write_answered(tmp_path, "scratch", [0.6])[0]
    if damage == "cut":
        (folder / "predictions.safetensors").write_bytes(b"cut")
    else:
        write_answers(folder, [True] * N)
    files = write_report(tmp_path)
    assert [notice.name for notice in files.notices] == ["test answers left out"]
    assert "runs/scratch-seed0-0: its predictions.safetensors" in files.notices[0].text
    assert re.search(r"validation \| 1 \| 400 \| \d\d\.\d\d ± – \| – \| – \|", text(files))


def test_other_samples_are_not_compared(tmp_path: Path) -> None:
    write_answered(tmp_path, "scratch", [0.6, 0.61])
    write_answered(tmp_path, "elsewhere", [0.7, 0.71], samples="b")
    report = read_report(tmp_path)
    assert report.comparisons[0].accuracy is None
    assert "were tested on different samples" in report.comparisons[0].why_not
    assert "elsewhere cannot be compared with scratch: elsewhere seed 0 and scratch" in text(write_report(tmp_path))


def test_seeds_of_one_group_on_other_samples_are_no_group(tmp_path: Path) -> None:
    write_run(tmp_path, "scratch", 0, right=right(0.6, 0).tolist())
    write_run(tmp_path, "scratch", 1, right=right(0.6, 1).tolist(), samples="b")
    report = read_report(tmp_path)
    assert not report.groups[0].comparable
    assert "different samples" in report.groups[0].over_samples[1]


def test_folders_are_compared_by_their_seeds(tmp_path: Path) -> None:
    ours = write_answered(tmp_path, "better", [0.70, 0.71, 0.72])
    theirs = write_answered(tmp_path, "scratch", [0.60, 0.61])
    found = compare_folders(ours, theirs[::-1])
    assert found.seeds == (0, 1)
    assert found.difference.mean == pytest.approx(
        100 * np.mean([right(0.7, 0).mean() - right(0.6, 0).mean(), right(0.71, 1).mean() - right(0.61, 1).mean()])
    )
    with pytest.raises(ReportError, match="no seed in common"):
        compare_folders(ours[2:], theirs)


@pytest.mark.parametrize("width", [80, 120, 200])
def test_main_table_fits_the_terminal(tmp_path: Path, width: int) -> None:
    write_answered(tmp_path, "scratch", [0.60, 0.61, 0.62])
    write_answered(tmp_path, "mae-vit", [0.70, 0.71, 0.72])
    console = Console(width=width, record=True, file=(tmp_path / "terminal").open("w"))
    console.print(main_table(write_report(tmp_path), width))
    shown = console.export_text()
    assert "…" not in shown
    assert ("macro F1" in shown) == (width > 80)
    assert max(map(len, shown.splitlines())) <= width


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    write_answered(tmp_path, "scratch", [0.6])
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path;"
        "from pfcluster.report.write import read_report;"
        f"print(read_report(Path({json.dumps(str(tmp_path))})).groups[0].over_samples[0].samples)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(N), done.stderr
