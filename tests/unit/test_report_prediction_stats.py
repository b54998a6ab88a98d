"""Statistics of per-sample predictions in a report, and runs without predictions."""

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
from scipy import stats

from pfcluster.report.prediction_stats import compare_predictions
from pfcluster.report.resampling import bootstrap, bootstrap_difference
from pfcluster.report.results import read_run
from pfcluster.report.study import read_report
from pfcluster.report.terminal import main_table
from pfcluster.report.write import write_report
from tests.studies import Page, text, write_group, write_predictions, write_run

N = 400


def correct(accuracy: float, seed: int, n: int = N) -> NDArray[np.bool_]:
    """Which of n samples are classified correctly: a common difficulty per sample plus noise of the seed."""
    difficulty = np.random.default_rng(7).random(n)
    return np.asarray(difficulty + 0.1 * np.random.default_rng(seed).random(n) < accuracy + 0.05)


def write_predicted(study: Path, name: str, accuracies: list[float], **changes: object) -> list[Path]:
    return [
        write_run(study, name, seed, correct=correct(accuracy, seed).tolist(), **changes)  # type: ignore[arg-type]
        for seed, accuracy in enumerate(accuracies)
    ]


def test_tables_hold_intervals_and_tests(tmp_path: Path) -> None:
    write_predicted(tmp_path, "scratch", [0.60, 0.61, 0.62])
    write_predicted(tmp_path, "better", [0.70, 0.71, 0.72])
    files = write_report(tmp_path)
    report = text(files)
    treated, reference = (
        [correct(accuracy, seed) for seed, accuracy in enumerate(accuracies)]
        for accuracies in ([0.70, 0.71, 0.72], [0.60, 0.61, 0.62])
    )
    group, difference = (
        bootstrap(100 * np.stack(treated)),
        bootstrap_difference(100 * np.stack(treated), 100 * np.stack(reference)),
    )
    assert f"| {group.low:.2f} to {group.high:.2f} |" in report
    assert f"| {difference.low:+.2f} to {difference.high:+.2f} |" in report
    assert "### Differences from scratch, paired by seed on 400 test samples" in report
    assert "| 3 of 3 seeds |" in report
    assert "The interval over seeds and 400 test samples also excludes 0" in report
    assert re.search(r"better: .* % accuracy on the 400 test images \(3 seeds\)", report)
    row = next(csv.DictReader(files.comparisons_csv.open()))
    assert (row["name"], row["baseline"], row["seeds"], row["samples"]) == ("better", "scratch", "0 1 2", "400")
    assert float(row["accuracy.seeds_and_samples.low"]) == pytest.approx(difference.low)
    gained, lost = int(row["mcnemar.seed-0.gained"]), int(row["mcnemar.seed-0.lost"])
    assert gained == (treated[0] & ~reference[0]).sum()
    assert float(row["mcnemar.seed-0.p"]) == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    assert float(row["mcnemar.seed-0.holm_p"]) >= float(row["mcnemar.seed-0.p"])
    summary = {row["name"]: row for row in csv.DictReader(files.summary_csv.open())}
    assert float(summary["better"]["test.accuracy.seeds_and_samples.low"]) == pytest.approx(group.low / 100)
    page = "".join(Page(files.html.read_text()).words).replace("\u00a0", " ")
    assert "95 % CI (seeds and samples)" in page
    assert "mean class accuracy %" in page


def test_mcnemar_p_is_corrected_over_all_comparisons(tmp_path: Path) -> None:
    write_predicted(tmp_path, "scratch", [0.60, 0.60])
    write_predicted(tmp_path, "a", [0.66, 0.66])
    one_comparison = read_report(tmp_path).comparisons[0].predictions
    write_predicted(tmp_path, "b", [0.60, 0.60])
    two_comparisons = read_report(tmp_path).comparisons[0].predictions
    assert one_comparison is not None
    assert two_comparisons is not None
    smallest = min(test.p for test in one_comparison.tests)
    assert min(one_comparison.holm_p) == pytest.approx(2 * smallest)
    assert min(two_comparisons.holm_p) == pytest.approx(4 * smallest)


def test_equal_predictions_have_difference_zero(tmp_path: Path) -> None:
    write_predicted(tmp_path, "scratch", [0.6, 0.62])
    write_predicted(tmp_path, "same", [0.6, 0.62])
    report = read_report(tmp_path)
    comparison = report.comparisons[0].predictions
    assert comparison is not None
    assert (comparison.difference.mean, comparison.difference.low, comparison.difference.high) == (0, 0, 0)
    assert comparison.holm_p == (1.0, 1.0)
    assert "| 0 of 2 seeds |" in text(write_report(tmp_path))


def test_one_seed_has_an_interval_over_samples_only_and_no_finding(tmp_path: Path) -> None:
    write_predicted(tmp_path, "scratch", [0.6])
    write_predicted(tmp_path, "better", [0.8])
    report = text(write_report(tmp_path))
    assert report.count(" † |") == 3
    assert "† One seed: over samples only." in report
    assert "a single seed does not allow a test. On 400 test samples the 95 % interval" in report
    assert "McNemar's p < 0.001; this compares two trained networks, not two training methods." in report
    assert "better is better" not in report


def test_equal_differences_have_no_test_but_an_interval_over_samples(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, "scratch", seed, correct=[True] * 40 + [False] * 60)
        write_run(tmp_path, "better", seed, correct=[True] * 70 + [False] * 30)
    files = write_report(tmp_path)
    report = text(files)
    assert (
        "better scores +30.00 points against scratch on each of 2 seeds; all differences are equal: no test." in report
    )
    assert re.search(r"Over seeds and 100 test samples: 95 % interval .*, not conclusive because there is no", report)
    assert "over samples only" not in report
    row = next(csv.DictReader(files.comparisons_csv.open()))
    assert (row["accuracy.low"], row["accuracy.high"], row["accuracy.t_p"]) == ("", "", "")


def test_difference_within_sampling_error_has_a_caveat(tmp_path: Path) -> None:
    # 1, 1 and 2 of 20 samples more: consistent over seeds, within sampling error of the test set.
    base = [True] * 10 + [False] * 10
    for seed, more in enumerate((1, 1, 2)):
        write_run(tmp_path, "scratch", seed, correct=base)
        write_run(tmp_path, "better", seed, correct=[True] * (10 + more) + [False] * (10 - more))
    for seed in range(3, 8):
        write_run(tmp_path, "scratch", seed, correct=base)
        write_run(tmp_path, "better", seed, correct=[True] * 11 + [False] * 9)
    report = text(write_report(tmp_path))
    assert "better scores better than scratch: +5.6" in report
    assert "points over 8 seeds" in report
    assert "so the difference may not hold on other samples" in report
    assert "| 0 of 8 seeds |" in report


def test_runs_without_predictions_have_a_dash_and_a_reason(tmp_path: Path) -> None:
    write_predicted(tmp_path, "scratch", [0.6, 0.61])
    write_group(tmp_path, "old", [0.7, 0.71], test={"n": N, "accuracy": 0.7, "macro_f1": 0.6})
    report = text(write_report(tmp_path))
    assert "| old | finetune | validation | 2 | 400 | 70.00 ± 0.00 | – | – | – |" in report
    reason = "predictions are missing: old seed 0, old seed 1: no predictions.safetensors."
    assert report.count(reason) == 2
    assert "old is better" in report


def test_one_run_without_predictions_leaves_the_group_without_an_interval(tmp_path: Path) -> None:
    folders = write_predicted(tmp_path, "scratch", [0.6, 0.61])
    (folders[1] / "predictions.safetensors").unlink()
    interval, reason = read_report(tmp_path).groups[0].bootstrap_accuracy
    assert interval is None
    assert reason == "scratch seed 1: no predictions.safetensors"


@pytest.mark.parametrize("damage", ["truncated", "another test"])
def test_damaged_predictions_are_ignored_with_a_notice(tmp_path: Path, damage: str) -> None:
    folder = write_predicted(tmp_path, "scratch", [0.6])[0]
    if damage == "truncated":
        (folder / "predictions.safetensors").write_bytes(b"cut")
    else:
        write_predictions(folder, [True] * N)
    files = write_report(tmp_path)
    assert [notice.name for notice in files.notices] == ["test predictions ignored"]
    assert "runs/scratch-seed0-0: its predictions.safetensors" in files.notices[0].text
    assert re.search(r"validation \| 1 \| 400 \| \d\d\.\d\d ± – \| – \| – \|", text(files))


def test_groups_on_different_samples_are_not_compared(tmp_path: Path) -> None:
    write_predicted(tmp_path, "scratch", [0.6, 0.61])
    write_predicted(tmp_path, "elsewhere", [0.7, 0.71], samples="b")
    report = read_report(tmp_path)
    assert report.comparisons[0].accuracy is None
    assert "were tested on different samples" in report.comparisons[0].not_compared
    assert "elsewhere cannot be compared with scratch: elsewhere seed 0 and scratch" in text(write_report(tmp_path))


def test_seeds_on_different_samples_are_not_comparable(tmp_path: Path) -> None:
    write_run(tmp_path, "scratch", 0, correct=correct(0.6, 0).tolist())
    write_run(tmp_path, "scratch", 1, correct=correct(0.6, 1).tolist(), samples="b")
    report = read_report(tmp_path)
    assert not report.groups[0].comparable
    assert "different samples" in report.groups[0].bootstrap_accuracy[1]


def test_predictions_are_compared_by_seed(tmp_path: Path) -> None:
    sides = {"better": [0.70, 0.71, 0.72], "scratch": [0.60, 0.61]}
    treated, reference = (
        [read_run(folder, folder.name) for folder in write_predicted(tmp_path, name, accuracies)]
        for name, accuracies in sides.items()
    )
    comparison, reason = compare_predictions(treated, reference[::-1])
    assert comparison is not None
    assert reason == ""
    assert comparison.seeds == (0, 1)
    assert comparison.difference.mean == pytest.approx(
        100
        * np.mean([correct(0.7, 0).mean() - correct(0.6, 0).mean(), correct(0.71, 1).mean() - correct(0.61, 1).mean()])
    )
    assert compare_predictions(treated[2:], reference) == (None, "no seed in common")


@pytest.mark.parametrize("width", [80, 120, 200])
def test_main_table_fits_the_terminal(tmp_path: Path, width: int) -> None:
    write_predicted(tmp_path, "scratch", [0.60, 0.61, 0.62])
    write_predicted(tmp_path, "mae-vit", [0.70, 0.71, 0.72])
    console = Console(width=width, record=True, file=(tmp_path / "terminal").open("w"))
    console.print(main_table(write_report(tmp_path).report, width))
    printed = console.export_text()
    assert "…" not in printed
    assert ("macro F1" in printed) == (width > 80)
    assert max(map(len, printed.splitlines())) <= width


def test_report_does_not_import_torch(tmp_path: Path) -> None:
    write_predicted(tmp_path, "scratch", [0.6])
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path;"
        "from pfcluster.report.study import read_report;"
        f"print(read_report(Path({json.dumps(str(tmp_path))})).groups[0].bootstrap_accuracy[0].samples)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(N), done.stderr
