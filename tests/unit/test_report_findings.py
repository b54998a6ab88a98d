"""What a report says of a study, and what it does not compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfcluster.report.results import ReportError
from pfcluster.report.write import write_report
from tests.studies import CLASSES, poker, text, write_group, write_run


def test_one_seed_has_no_spread_and_proves_nothing(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.7])
    write_group(tmp_path, "mae-vit", [0.8], poker=poker(0.05))
    report = text(write_report(tmp_path))
    assert "| mae-vit | finetune | validation | 1 | 8 | 80.00 ± – | – |" in report
    assert "mae-vit scores +10.00 points against scratch on the one seed they share; one seed cannot tell" in report
    assert "In the one seed there is, the poker faces lie nearer to the true neutral face than the input does" in report


def test_no_difference_is_said_plainly(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.70, 0.72, 0.71])
    write_group(tmp_path, "other", [0.72, 0.71, 0.70])
    report = text(write_report(tmp_path))
    assert "No difference between other and scratch can be told: +0.00 points over 3 seeds" in report
    # Differences 2, -1, -1: std sqrt 3, half = 4.3027 sqrt 3 / sqrt 3
    assert "only 4.30 points or more would stand out" in report


def test_correction_for_many_comparisons(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.70, 0.71, 0.72])
    for name in "abcd":
        write_group(tmp_path, name, [0.75, 0.77, 0.76])
    report = text(write_report(tmp_path))
    assert "| a | 3 | +5.00 | +2.52 to +7.48 | – | 0.013 | 0.052 |" in report
    assert "a scores better than scratch" in report
    assert "p = 0.052, so this may still be chance" in report


@pytest.mark.parametrize(
    ("faces", "verdict"),
    [
        ([0.060, 0.061, 0.062], "The poker faces come nearer to the true neutral face than the input does"),
        ([0.260, 0.261, 0.262], "The poker faces do not come nearer to the true neutral face than the input does"),
        (
            [0.050, 0.150, 0.250],
            "Whether the poker faces come nearer to the true neutral face than the input does cannot",
        ),
    ],
)
def test_poker_verdict_is_computed(tmp_path: Path, faces: list[float], verdict: str) -> None:
    for seed, face in enumerate(faces):
        write_run(tmp_path, "pf-vit", seed, objective="pf_mag", poker=poker(face, psnr=22 + seed / 10))
    report = text(write_report(tmp_path))
    assert verdict in report
    assert "PSNR (dB) 22.10 against 24.00 (farther from the truth)" in report
    assert "Neutrality in the judge's eyes: 0.500 ± 0.000 for the poker faces, beside 0.500 for input" in report


@pytest.mark.parametrize(
    ("neutralised_rate", "words"),
    [(0.04, "hardly any is calm"), (0.31, "3 in 10 are calm"), (0.96, "nearly all are calm")],
)
def test_how_far_from_calm_is_said_in_words(tmp_path: Path, neutralised_rate: float, words: str) -> None:
    measured = poker(0.1)
    for row, figures in {
        "poker face": {"neutralised_rate": neutralised_rate},
        "truth": {"neutralised_rate": 0.97},
        "reconstruction": {"emotion_agreement": 0.8},
    }.items():
        measured["rows"][row] |= figures
    write_run(tmp_path, "pf-vit", 0, objective="pf_mag", poker=measured)
    report = text(write_report(tmp_path))
    assert (
        f"Of faces with an expression {words}: the judge calls {neutralised_rate:.3f} ± – neutral, beside 0.970 for"
        in report
    )
    assert "it names the emotion of 0.800 of the reconstructions" in report


def test_nearer_than_the_input_but_not_than_the_reconstruction(tmp_path: Path) -> None:
    for seed, face in enumerate([0.120, 0.121, 0.122]):
        write_run(tmp_path, "pf-vit", seed, objective="pf_mag", poker=poker(face))
    report = text(write_report(tmp_path))
    assert "The poker faces come nearer to the true neutral face than the input does" in report
    assert "do not come nearer to the true neutral face than the network's own reconstruction does" in report


def test_poker_faces_without_a_known_truth(tmp_path: Path) -> None:
    row = {"neutral_rate": 0.5, "identity_cosine": None, "psnr": None, "ssim": None, "mse_inside": None}
    write_run(tmp_path, "pf-vit", 0, objective="pf_mag", poker={"n": 8, "rows": {"input": row, "poker face": row}})
    assert "The true neutral faces of this data are not known" in text(write_report(tmp_path))


def test_differing_configs_are_named_and_not_compared(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.7, 0.71])
    write_run(tmp_path, "odd", 0)
    write_run(tmp_path, "odd", 1, config={"model": {"depth": 5}})
    files = write_report(tmp_path)
    assert [notice.name for notice in files.notices] == ["runs not comparable"]
    assert "model.depth is 4 and 5" in files.notices[0].text
    report = text(files)
    assert "odd has no score" in report
    assert "odd cannot be compared with scratch" in report
    assert "odd ⚠" in report


def test_weights_of_the_same_seed_are_no_difference(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "good", seed, config={"model": {"init": f"runs/mae-seed{seed}"}, "output": f"x{seed}"})
        write_run(tmp_path, "bad", seed, config={"model": {"init": f"runs/mae-0.{seed + 5}"}})
    notices = write_report(tmp_path).notices
    assert len(notices) == 1
    assert "model.init is 'runs/mae-0.5' and 'runs/mae-0.6'" in notices[0].text


def test_a_repeated_seed_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path, "scratch", 0, accuracy=0.7)
    write_run(tmp_path, "scratch", 0, accuracy=0.9, suffix=1)
    files = write_report(tmp_path)
    assert [notice.name for notice in files.notices] == ["repeated seed"]
    assert "| scratch | finetune | validation | 1 | 8 | 70.00 ± – |" in text(files)
    assert "scratch-seed0-1" in text(files)


def test_chosen_on_the_test_split_is_labelled_and_not_compared(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.7, 0.71])
    write_group(tmp_path, "paper", [0.8, 0.81], chosen_on="test")
    files = write_report(tmp_path)
    assert "| paper | finetune | test ‡ |" in text(files)
    assert "paper is not compared: its checkpoint was chosen on test" in text(files)
    assert "Chosen on the test split:" in files.html.read_text()
    assert "‡" not in text(write_report(tmp_path / "runs" / "scratch-seed0-0"))


def test_another_test_set_is_not_compared(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.7, 0.71])
    dataset = {"name": "other", "classes": CLASSES}
    write_group(tmp_path, "elsewhere", [0.8, 0.81], dataset=dataset)
    assert "elsewhere cannot be compared with scratch: tested on another test set" in text(write_report(tmp_path))


def test_only_common_seeds_are_paired(tmp_path: Path) -> None:
    write_run(tmp_path, "scratch", 0, accuracy=0.70)
    write_run(tmp_path, "scratch", 1, accuracy=0.90)
    write_run(tmp_path, "far", 5, accuracy=0.9)
    write_run(tmp_path, "near", 0, accuracy=0.72)
    write_run(tmp_path, "near", 2, accuracy=0.10)
    report = text(write_report(tmp_path))
    assert "near scores +2.00 points against scratch on the one seed they share" in report
    assert "far cannot be compared with scratch: no seed in common" in report


def test_baseline_by_name(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.7])
    write_group(tmp_path, "big", [0.8])
    assert "### Against scratch" in text(write_report(tmp_path))
    assert "### Against big" in text(write_report(tmp_path, baseline="big"))
    with pytest.raises(ReportError, match=r"'huge' .* big, scratch"):
        write_report(tmp_path, baseline="huge")
