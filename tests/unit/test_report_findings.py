"""Findings of a report in sentences, and groups that it does not compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfcluster.report.errors import ReportError
from pfcluster.report.write import write_report
from tests.studies import CLASSES, poker, text, write_group, write_run


def test_one_seed_has_no_std_and_no_test(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.7])
    write_group(tmp_path, "mae-vit", [0.8], poker=poker(0.05))
    report = text(write_report(tmp_path))
    assert "| mae-vit | finetune | validation | 1 | 8 | 80.00 ± – | – |" in report
    assert (
        "mae-vit scores +10.00 points against scratch on the one common seed; a single seed does not allow a test"
        in report
    )
    assert "The poker faces of the single seed are closer to the true neutral face than the input" in report


def test_no_significant_difference(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.70, 0.72, 0.71])
    write_group(tmp_path, "other", [0.72, 0.71, 0.70])
    report = text(write_report(tmp_path))
    assert "No significant difference between other and scratch: +0.00 points over 3 seeds" in report
    # Differences 2, -1, -1: std sqrt 3, half = 4.3027 sqrt 3 / sqrt 3
    assert "Smallest detectable difference at this variance: 4.30 points" in report


def test_equal_differences_are_no_significant_difference(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.90, 0.91])
    write_group(tmp_path, "mae-vit", [0.91, 0.92], poker=poker(0.05))
    files = write_report(tmp_path)
    report = text(files)
    sentence = "mae-vit scores +1.00 points against scratch on each of 2 seeds; all differences are equal: no test."
    assert sentence in report
    assert "mae-vit is better" not in report
    assert "| mae-vit | 2 | +1.00 | – | – | – | – |" in report
    (comparison,) = files.report.comparisons
    assert comparison.holm_p is None
    assert "The poker faces of each of 2 seeds are closer to the true neutral face than the input: " in report
    assert "All differences are equal: no test." in report


def test_holm_correction_over_comparisons(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.70, 0.71, 0.72])
    for name in "abcd":
        write_group(tmp_path, name, [0.75, 0.77, 0.76])
    report = text(write_report(tmp_path))
    assert "| a | 3 | +5.00 | +2.52 to +7.48 | – | 0.013 | 0.052 |" in report
    assert "a scores better than scratch" in report
    assert "not significant after correction for the number of comparisons (p = 0.052)" in report


def test_comparison_with_equal_differences_counts_in_the_correction(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.70, 0.71, 0.72])
    write_group(tmp_path, "a", [0.75, 0.77, 0.76])
    for name in "bcd":
        write_group(tmp_path, name, [0.71, 0.72, 0.73])
    assert "| a | 3 | +5.00 | +2.52 to +7.48 | – | 0.013 | 0.052 |" in text(write_report(tmp_path))


@pytest.mark.parametrize(
    ("mse_inside", "sentence"),
    [
        ([0.060, 0.061, 0.062], "The poker faces are closer to the true neutral face than the input: "),
        (
            [0.260, 0.261, 0.262],
            "The poker faces are farther from the true neutral face than the input: ",
        ),
        (
            [0.050, 0.150, 0.250],
            "The poker faces are not significantly closer to or farther from the true neutral face than the input: ",
        ),
    ],
)
def test_distance_to_the_truth_is_tested(tmp_path: Path, mse_inside: list[float], sentence: str) -> None:
    for seed, face in enumerate(mse_inside):
        write_run(tmp_path, "pf-vit", seed, objective="pf_mag", poker=poker(face, psnr=22 + seed / 10))
    report = text(write_report(tmp_path))
    assert sentence in report
    assert "PSNR (dB) 22.10 against 24.00 (farther from the truth)" in report
    assert "The judge classifies 0.500 ± 0.000 of the poker faces as neutral, against 0.500 for input" in report


@pytest.mark.parametrize(
    ("neutralised_rate", "words"),
    [(0.04, "hardly any are"), (0.08, "1 in 10 is"), (0.31, "3 in 10 are"), (0.96, "nearly all are")],
)
def test_neutralised_rate_in_words(tmp_path: Path, neutralised_rate: float, words: str) -> None:
    results = poker(0.1)
    for row, rates in {
        "poker face": {"neutralised_rate": neutralised_rate},
        "truth": {"neutralised_rate": 0.97},
        "reconstruction": {"emotion_agreement": 0.8},
    }.items():
        results["rows"][row] |= rates
    write_run(tmp_path, "pf-vit", 0, objective="pf_mag", poker=results)
    report = text(write_report(tmp_path))
    assert (
        f"Of the poker faces of expressive inputs, {words} classified as neutral: {neutralised_rate:.3f} ± –, against "
        "0.970 for truth" in report
    )
    assert "emotion agreement of the reconstructions: 0.800" in report
    assert "Emotion agreement: share of all faces, neutral ones included, that the judge assigns to" in report
    assert f"{words} classified as neutral" in report.partition("###")[0], "not among the findings"


def test_closer_than_the_input_but_not_than_the_reconstruction(tmp_path: Path) -> None:
    for seed, face in enumerate([0.120, 0.121, 0.122]):
        write_run(tmp_path, "pf-vit", seed, objective="pf_mag", poker=poker(face))
    report = text(write_report(tmp_path))
    assert "The poker faces are closer to the true neutral face than the input: " in report
    assert "The poker faces are farther from the true neutral face than the reconstruction: " in report


def test_poker_faces_without_true_neutral_faces(tmp_path: Path) -> None:
    row = {"neutral_rate": 0.5, "identity_cosine": None, "psnr": None, "ssim": None, "mse_inside": None}
    write_run(tmp_path, "pf-vit", 0, objective="pf_mag", poker={"n": 8, "rows": {"input": row, "poker face": row}})
    assert "The dataset has no true neutral faces" in text(write_report(tmp_path))


def test_runs_with_different_configs_are_not_comparable(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.7, 0.71])
    write_run(tmp_path, "odd", 0)
    write_run(tmp_path, "odd", 1, config={"model": {"depth": 5}})
    files = write_report(tmp_path)
    assert [notice.name for notice in files.notices] == ["runs not comparable"]
    assert "model.depth is 4 and 5" in files.notices[0].text
    report = text(files)
    assert "odd: no mean accuracy" in report
    assert "odd cannot be compared with scratch" in report
    assert "odd ⚠" in report


def test_fields_that_may_change_on_resume_are_no_differences(tmp_path: Path) -> None:
    for seed, workers in enumerate((2, 8)):
        more = {"data": {"workers": workers}, "engine": {"backend": ("ddp", "fsdp2")[seed], "precision": "fp32"}}
        write_run(tmp_path, "resumed", seed, config=more)
    assert not write_report(tmp_path).notices
    write_run(tmp_path, "resumed", 2, config={"data": {"workers": 2}, "engine": {"precision": "bf16"}})
    (notice,) = write_report(tmp_path).notices
    assert "engine.precision is 'fp32' and 'bf16'" in notice.text
    assert "workers" not in notice.text


def test_paths_with_the_seed_are_not_config_differences(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "good", seed, config={"model": {"init": f"runs/mae-seed{seed}"}, "output": f"x{seed}"})
        write_run(tmp_path, "bad", seed, config={"model": {"init": f"runs/mae-0.{seed + 5}"}})
    notices = write_report(tmp_path).notices
    assert len(notices) == 1
    assert "model.init is 'runs/mae-0.5' and 'runs/mae-0.6'" in notices[0].text


@pytest.mark.parametrize("study", ["study-1", "0/seed-2", "s2/run 1"])
def test_numbers_that_the_paths_of_all_seeds_share_are_no_seeds(tmp_path: Path, study: str) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path, "good", seed, config={"model": {"init": f"{study}/mae-vit/seed-{seed}"}})
        write_run(tmp_path, "bad", seed, config={"model": {"init": f"{study}/mae-vit/seed-{(seed + 1) % 3}"}})
    (notice,) = write_report(tmp_path).notices
    assert f"model.init is '{study}/mae-vit/seed-1' and '{study}/mae-vit/seed-2'" in notice.text


def test_repeated_seed_is_averaged_once(tmp_path: Path) -> None:
    write_run(tmp_path, "scratch", 0, accuracy=0.7)
    write_run(tmp_path, "scratch", 0, accuracy=0.9, suffix=1)
    files = write_report(tmp_path)
    assert [notice.name for notice in files.notices] == ["repeated seed"]
    assert "| scratch | finetune | validation | 1 | 8 | 70.00 ± – |" in text(files)
    assert "scratch-seed0-1" in text(files)


def test_runs_selected_on_the_test_split_are_marked_and_not_compared(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.7, 0.71])
    write_group(tmp_path, "paper", [0.8, 0.81], selection_split="test")
    files = write_report(tmp_path)
    assert "| paper | finetune | test ‡ |" in text(files)
    assert "paper is not compared: its checkpoint was selected on test" in text(files)
    assert "Selected on the test split:" in files.html.read_text()
    assert "‡" not in text(write_report(tmp_path / "runs" / "scratch-seed0-0"))


def test_runs_tested_on_different_numbers_of_samples_are_not_averaged(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.7, 0.71])
    write_run(tmp_path, "odd", 0, test={"n": 8, "accuracy": 0.75})
    write_run(tmp_path, "odd", 1, test={"n": 7, "accuracy": 0.75})
    write_run(tmp_path, "spared", 0, test={})
    write_run(tmp_path, "spared", 1, test={"n": 8, "accuracy": 0.75})
    files = write_report(tmp_path)
    (notice,) = (one for one in files.notices if one.name == "runs not comparable")
    assert notice.text.startswith("odd: ")
    assert "were tested on different numbers of samples" in notice.text
    assert "odd cannot be compared with scratch" in text(files)
    assert "spared scores" in text(files), "its first run was not tested, and the other one on the same samples"


def test_groups_on_different_test_sets_are_not_compared(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.7, 0.71])
    dataset = {"name": "other", "classes": CLASSES}
    write_group(tmp_path, "elsewhere", [0.8, 0.81], dataset=dataset)
    assert "elsewhere cannot be compared with scratch: evaluated on a different test set" in text(
        write_report(tmp_path)
    )


def test_only_common_seeds_are_paired(tmp_path: Path) -> None:
    write_run(tmp_path, "scratch", 0, accuracy=0.70)
    write_run(tmp_path, "scratch", 1, accuracy=0.90)
    write_run(tmp_path, "far", 5, accuracy=0.9)
    write_run(tmp_path, "near", 0, accuracy=0.72)
    write_run(tmp_path, "near", 2, accuracy=0.10)
    report = text(write_report(tmp_path))
    assert "near scores +2.00 points against scratch on the one common seed" in report
    assert "far cannot be compared with scratch: no seed in common" in report


def test_baseline_by_name(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.7])
    write_group(tmp_path, "big", [0.8])
    assert "### Differences from scratch" in text(write_report(tmp_path))
    assert "### Differences from big" in text(write_report(tmp_path, baseline="big"))
    with pytest.raises(ReportError, match=r"'huge' .* big, scratch"):
        write_report(tmp_path, baseline="huge")
