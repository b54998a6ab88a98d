"""The report on small studies written by hand: what it counts, what it says, what it leaves out, what it refuses."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from pfcluster.report.figures import confusion, curves, mean_curve, thin
from pfcluster.report.results import ReportError
from pfcluster.report.tables import latex_text, markdown_text
from pfcluster.report.write import ReportFiles, main_table, write_report

CLASSES = ["neutral", "happiness"]


def write_run(study: Path, name: str, seed: int, /, **changes: Any) -> Path:
    """A finished fine-tuning run with an accuracy of 0.75.

    `changes` replace fields of result.json, `config` those of config.json.
    """
    folder = study / "runs" / f"{name}-seed{seed}-{changes.pop('suffix', 0)}"
    folder.mkdir(parents=True)
    config = {"name": name, "seed": seed, "batch_size": 64, "model": {"depth": 4}} | changes.pop("config", {})
    (folder / "config.json").write_text(json.dumps(config))
    accuracy = changes.pop("accuracy", 0.75)
    result = {
        "format": 1, "name": name, "objective": "finetune", "seed": seed, "status": "finished", "steps": 100,
        "seconds": 61.0, "images_per_second": 900.0, "parameters": {"train": 1234567, "test": 1000000},
        "dataset": {"name": "synthetic", "classes": CLASSES, "train": 80, "validation": 10, "test": 8},
        "chosen_on": "validation", "best": {"step": 90, "value": 0.8}, "validation": {"accuracy": 0.8},
        "test": {"n": 8, "accuracy": accuracy, "macro_f1": accuracy - 0.05,
                 "per_class": {"neutral": 0.5, "happiness": 1.0}, "confusion": [[2, 2], [0, 4]]},
        "poker": None, "reconstruction": None, "pictures": {}, "command": f"python jobs/launch.py --seed {seed}",
        "versions": {"torch": "2.15"}, "git_commit": "abc",
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result | changes))
    return folder


def write_group(study: Path, name: str, accuracies: list[float], **changes: Any) -> None:
    for seed, accuracy in enumerate(accuracies):
        write_run(study, name, seed, accuracy=accuracy, **changes)


def poker(face: float, *, source: float = 0.15, reconstruction: float = 0.10, psnr: float = 22.0) -> Mapping[str, Any]:
    """Poker rows with these errors in the expression's region."""

    def row(error: float | None, decibel: float | None) -> dict[str, float | None]:
        return {"neutrality": 0.5, "identity": 0.9, "psnr": decibel, "ssim": None, "region_error": error}

    rows = {"input": row(source, 24.0), "reconstruction": row(reconstruction, 25.0)}
    return {"n": 8, "rows": rows | {"poker face": row(face, psnr), "truth": row(0.0, None)}}


def text(files: ReportFiles) -> str:
    """The report's Markdown without its escapes and unbreakable spaces."""
    return files.markdown.read_text().replace("\\", "").replace("\u00a0", " ")


class Page(HTMLParser):
    """What the tests look at: tags with attributes, the text, and unclosed elements."""

    void = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """Three kinds of runs with curves and pictures, one unfinished and one failed run."""
    study = tmp_path / "study"
    write_group(study, "scratch", [0.70, 0.71, 0.72])
    write_group(study, "pf-vit", [0.75, 0.77, 0.76], objective="pf_mag", poker=poker(0.06), pictures={"views": "v.png"})
    write_group(
        study,
        "mae",
        [0.0],
        objective="mae",
        test={"n": 9, "loss": 0.31},
        validation={"loss": 0.0123},
        pictures={"mae": "v.png"},
    )
    for folder in (study / "runs").iterdir():
        lines = [{"split": "train", "step": step, "loss": 2 / step, "cls": 1 / step} for step in range(1, 20)]
        lines += [{"split": "validation", "step": step, "accuracy": 0.5 + step / 100} for step in (5, 10, 15)]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"split": "tra')
        Image.new("RGB", (8, 4), "red").save(folder / "v.png")
    write_run(study, "scratch", 8, status="failed: loss is not finite")
    unfinished = study / "runs" / "scratch-seed9"
    unfinished.mkdir()
    (unfinished / "config.json").write_text('{"name": "scratch", "seed": 9}')
    return study


def test_means_and_tests_reach_the_tables(full: Path) -> None:
    files = write_report(full)
    report = text(files)
    assert "| scratch | finetune | validation | 3 | 71.00 ± 1.00 | 68.52 to 73.48 | 66.00 ± 1.00 |" in report
    # Differences 5, 6, 4: mean 5, std 1, half = 4.3027 / sqrt 3 = 2.484; t = 8.660, p = 1 - t / sqrt(t^2 + 2) = 0.013
    assert "| pf-vit | 3 | +5.00 | +2.52 to +7.48 | 0.013 | 0.013 | – | +5.00 |" in report
    assert (
        "pf-vit is better than scratch: +5.00 points over 3 seeds (95 % interval +2.52 to +7.48, p = 0.013)." in report
    )
    assert "With n = 3 only large differences can be seen" in report
    assert "Answering “neutral” every time would score 50.00 %" in report
    assert "| mae | 1 | 0.0123 ± – | 0.3100 ± – |" in report


def test_unfinished_and_failed_runs_are_listed_and_not_counted(full: Path) -> None:
    report = text(write_report(full))
    assert "| runs/scratch-seed8-0 | scratch | failed: loss is not finite |" in report
    assert "| runs/scratch-seed9 | scratch | no result yet | – | 9 |" in report


def test_csv_has_every_run_and_full_precision(full: Path) -> None:
    files = write_report(full)
    rows = list(csv.DictReader(files.results_csv.open()))
    assert len(rows) == 9
    assert {row["test.accuracy"] for row in rows if row["name"] == "scratch"} == {"0.7", "0.71", "0.72", ""}
    summary = {row["name"]: row for row in csv.DictReader(files.summary_csv.open())}
    assert float(summary["scratch"]["test.accuracy.std"]) == pytest.approx(0.01)
    assert summary["mae"]["validation.loss.std"] == ""


def test_page_is_whole_and_stands_alone(full: Path) -> None:
    page = Page(write_report(full).html.read_text())
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert (value or "").startswith(("data:image/", "#")), (tag, name, value)
    style = write_report(full).html.read_text()
    assert "@import" not in style
    assert not re.search(r"url\((?!['\"]?#)", style)


def test_page_can_be_read_without_seeing_it(full: Path) -> None:
    page = Page(write_report(full).html.read_text())
    assert page.all("html")[0]["lang"] == "en"
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert len(page.all("img")) == 2
    assert page.all("svg")
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in page.all("svg"))
    assert all(attributes["scope"] in ("col", "row") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {(attributes.get("href") or "")[1:] for attributes in page.all("a")}
    assert targets <= set(ids)


def test_same_study_same_bytes(full: Path, tmp_path: Path) -> None:
    first, second = write_report(full, tmp_path / "a"), write_report(full, tmp_path / "b")
    for name in ("html", "markdown", "results_csv", "summary_csv", "latex"):
        assert getattr(first, name).read_bytes() == getattr(second, name).read_bytes()
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [
        "report.html", "report.md", "results.csv", "summary.csv", "table.tex",
    ]  # fmt: skip


def test_a_second_report_does_not_read_the_first(full: Path) -> None:
    assert len(write_report(full).report.runs) == len(write_report(full).report.runs) == 7
    assert write_report(full).html == full / "report" / "report.html"


def test_strings_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    dataset = {"name": evil, "classes": ["<b>", "a&b_$x$"], "train": 1, "validation": 1, "test": 8}
    test = {"n": 8, "accuracy": 0.5, "per_class": {"<b>": 0.5}, "confusion": [[1, 1], [1, 1]]}
    folder = write_run(tmp_path, "plain", 0, dataset=dataset, command=evil, warning=evil, versions={evil: evil},
                       git_commit=evil, test=test)  # fmt: skip
    values = json.loads((folder / "result.json").read_text()) | {"name": evil, "status": "finished"}
    (folder / "result.json").write_text(json.dumps(values))
    config = {"name": evil, "note": evil, "seed": 0, evil: 1}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text('{"split": "train", "step": 1, "loss": 1.0}\n')
    files = write_report(tmp_path)
    page = Page(files.html.read_text())
    assert not page.all("script")
    assert not page.all("b")
    assert evil in "".join(page.words)
    assert not re.search(r"(?<!\\)<script", files.markdown.read_text())


def test_markdown_and_latex_escapes() -> None:
    assert markdown_text("a|b_c <i> & d") == r"a\|b\_c \<i\> &amp; d"
    assert latex_text("50 % of a_b & {c} ± –") == r"50 \% of a\_b \& \{c\} $\pm$ --"


def test_latex_table(full: Path) -> None:
    lines = write_report(full).latex.read_text()
    assert r"\begin{tabular}{lllrrrrr}" in lines
    assert r"pf-vit & pf\_mag & validation & 3 & 76.00 $\pm$ 1.00 & 73.52 to 78.48 & 71.00 $\pm$ 1.00 &" in lines


def test_table_for_the_terminal(full: Path) -> None:
    console = Console(width=160, record=True, file=(full / "terminal").open("w"))
    console.print(main_table(write_report(full)))
    assert re.search(r"scratch .* 71.00 ± 1.00", console.export_text())


def test_one_seed_has_no_spread_and_proves_nothing(tmp_path: Path) -> None:
    write_group(tmp_path, "scratch", [0.7])
    write_group(tmp_path, "mae-vit", [0.8], poker=poker(0.05))
    report = text(write_report(tmp_path))
    assert "| mae-vit | finetune | validation | 1 | 80.00 ± – | – |" in report
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
    assert "| a | 3 | +5.00 | +2.52 to +7.48 | 0.013 | 0.052 |" in report
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


def test_nearer_than_the_input_but_not_than_the_reconstruction(tmp_path: Path) -> None:
    for seed, face in enumerate([0.120, 0.121, 0.122]):
        write_run(tmp_path, "pf-vit", seed, objective="pf_mag", poker=poker(face))
    report = text(write_report(tmp_path))
    assert "The poker faces come nearer to the true neutral face than the input does" in report
    assert "do not come nearer to the true neutral face than the network's own reconstruction does" in report


def test_poker_faces_without_a_known_truth(tmp_path: Path) -> None:
    row = {"neutrality": 0.5, "identity": None, "psnr": None, "ssim": None, "region_error": None}
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
    assert "| scratch | finetune | validation | 1 | 70.00 ± – |" in text(files)
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


def test_bare_results_make_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "run"
    folder.mkdir(parents=True)
    bare = {"format": 1, "name": "bare", "objective": "finetune", "seed": 0, "status": "finished"}
    (folder / "result.json").write_text(json.dumps(bare))
    files = write_report(tmp_path)
    page = Page(files.html.read_text())
    assert not page.all("svg")
    assert not page.all("img")
    headings = {attributes["href"] for attributes in page.all("a")}
    assert headings == {"#reading", "#runs", "#repeat", "#findings"} - ({"#findings"} - headings)
    assert {notice.name for notice in files.notices} == {"no config", "no test figures"}
    assert files.latex.read_text().startswith("%")
    assert main_table(files).row_count == 1


@pytest.mark.parametrize(
    ("relative", "why"), [("gone.png", "cannot be read"), ("../../secret.png", "outside"), ("result.json", "none of")]
)
def test_bad_pictures_are_left_out_and_named(tmp_path: Path, relative: str, why: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    write_run(tmp_path, "pf-vit", 0, pictures={"views": relative})
    files = write_report(tmp_path)
    assert [notice.name for notice in files.notices] == ["picture left out"]
    assert why in files.notices[0].text
    assert not Page(files.html.read_text()).all("img")
    assert why in files.markdown.read_text()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"format": 2}, "format"),
        ({"seed": "0"}, "seed"),
        ({"objective": "dance"}, "objective"),
        ({"status": None}, "status"),
        ({"test": {"accuracy": "high"}}, "test.accuracy"),
        ({"test": {"accuracy": 0.5, "per_class": [1]}}, "test.per_class"),
        ({"test": {"accuracy": 0.5, "confusion": [[1]]}}, "test.confusion"),
        ({"test": {"accuracy": 0.5, "confusion": [[1, 2], [3, "x"]]}}, "test.confusion"),
        ({"poker": {"rows": {"input": 3}}}, "poker.rows.input"),
        ({"poker": {"rows": {"input": {"psnr": "x"}}}}, "poker.rows.input.psnr"),
        ({"pictures": ["a.png"]}, "pictures"),
        ({"dataset": {"classes": "neutral"}}, "dataset.classes"),
    ],
)
def test_malformed_results_name_file_and_field(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    folder = write_run(tmp_path, "scratch", 0, **changes)
    with pytest.raises(ReportError, match=re.escape(f"{folder / 'result.json'}: {field} must")):
        write_report(tmp_path)


def test_refusals_say_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="is no folder"):
        write_report(tmp_path / "gone")
    with pytest.raises(ReportError, match="no finished run"):
        write_report(tmp_path)
    folder = write_run(tmp_path, "scratch", 0, status="failed")
    with pytest.raises(ReportError, match="1 unfinished: runs/scratch-seed0-0"):
        write_report(tmp_path)
    (folder / "result.json").write_text("{")
    with pytest.raises(ReportError, match=r"result\.json cannot be read"):
        write_report(tmp_path)


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    write_run(tmp_path, "scratch", 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="give another output folder"):
        write_report(tmp_path, tmp_path / "file" / "report")


def test_figures_that_are_no_numbers_are_left_out_and_named(tmp_path: Path) -> None:
    write_run(tmp_path, "scratch", 0, accuracy=0.7)
    write_run(tmp_path, "scratch", 1, accuracy=float("nan"))
    files = write_report(tmp_path)
    assert "| scratch | finetune | validation | 1 | 70.00 ± – |" in text(files)
    assert "not a number" in [notice.name for notice in files.notices]


def test_configs_inside_a_run_are_not_runs(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "scratch", 0)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "config.json").write_text("{}")
    assert not write_report(tmp_path).report.unfinished


def test_curves_of_any_length() -> None:
    assert curves("Loss", "loss", {"a": [[]], "b": [[(1, float("nan"))]]}) == ""
    svg = curves("Loss $x", "loss", {"_a<b": [[(0, 1.0), (10, 2.0)], [(0, 3.0), (10, 4.0)]]})
    assert svg.startswith("<svg role=")
    assert "_a&lt;b" in svg
    assert svg.count("<svg") == 1


def test_mean_curve_by_hand() -> None:
    assert mean_curve([[(0, 0.0), (10, 10.0)], [(0, 2.0), (5, 4.0)]]) == [(0, 1.0), (5, 4.5)]
    assert mean_curve([[(0, 1.0)], [(5, 3.0)]]) == [(0, 1.0)]


def test_thinning_keeps_the_mean() -> None:
    points = [(float(step), float(step % 7)) for step in range(600)]
    thinned = thin(points)
    assert len(thinned) == 300
    assert sum(value for _, value in thinned) / 300 == pytest.approx(sum(value for _, value in points) / 600)


def test_confusion_shows_shares_of_rows() -> None:
    svg = confusion("name", CLASSES, [[3, 1], [0, 0]])
    words = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert words.count("75") == 1
    assert words.count("25") == 1
    assert words.count("–") == 2
