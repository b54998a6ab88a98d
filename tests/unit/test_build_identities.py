"""Identities that are not known, and identities that hold most photos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfcluster.cli.build import main
from pfcluster.data.build.pipeline import build
from pfcluster.data.manifest import load_manifest
from pfcluster.data.raw.identities import NA, NOT_KNOWN
from pfcluster.data.raw.readers import read_raw
from tests.photos import make_csv, make_folder, options

LABELS = ("happy", "sad")


def write_list(root: Path, identities: list[str]) -> Path:
    return make_csv(root, [(f"{n}.png", LABELS[n % 2], identity) for n, identity in enumerate(identities)])


@pytest.mark.parametrize("cell", sorted((*NOT_KNOWN, NA)))
def test_cells_that_mean_not_known_are_no_identity(tmp_path: Path, cell: str) -> None:
    dataset = read_raw(write_list(tmp_path, [cell, cell.upper(), "Ann", "", "None Smith", "10"]))
    assert [photo.identity for photo in dataset.photos] == [None, None, "Ann", None, "None Smith", "10"]
    (note,) = dataset.notes
    assert note.startswith(f"the identity of 2 photos is not known ({cell}: ")


def test_na_is_a_person_among_codes_of_two_letters(tmp_path: Path) -> None:
    jaffe = ["KA", "KL", "KM", "KR", "MK", "NA", "NM", "TM", "UY", "YM", "nan"]
    dataset = read_raw(write_list(tmp_path / "jaffe", jaffe))
    assert [photo.identity for photo in dataset.photos] == [*jaffe[:-1], None]
    dataset = read_raw(write_list(tmp_path / "other", ["KA", "NA", "p12"]))
    assert [photo.identity for photo in dataset.photos] == ["KA", None, "p12"]
    dataset = read_raw(write_list(tmp_path / "none", ["NA", "NA"]))
    assert [photo.identity for photo in dataset.photos] == [None, None]


def test_unknown_identities_of_metadata_and_parquet(tmp_path: Path) -> None:
    raw = make_folder(tmp_path / "raw", 2, LABELS)
    rows = [
        {"file_name": f"{label}/{n:03d}.png", "label": label, "person": cell}
        for label in LABELS
        for n, cell in enumerate(("NaN", "Ann"))
    ]
    (raw / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [photo.identity for photo in read_raw(raw).photos] == [None, "Ann", None, "Ann"]
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": b"x", "path": None}] * 2
    table = arrow.table({"image": images, "label": ["sad"] * 2, "person": [-1, 7]})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert [photo.identity for photo in read_raw(tmp_path / "t.parquet").photos] == [None, "7"]


def test_a_build_splits_photos_of_unknown_identity_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_list(tmp_path, ["nan"] * 30 + ["Ann"] * 2)
    arguments = ["--input", str(source), "--output", str(tmp_path / "out"), "--size", "24", "--align", "none"]
    for _ in range(2):  # also if it was finished before
        assert main([*arguments, "--workers", "1"]) == 0
        screen = capsys.readouterr().out
        assert "the identity of 30 photos is not known (nan: 30)" in screen
        assert "the identity is known for 2 photos only" in screen
    assert load_manifest(tmp_path / "out").splits["validation"].samples > 0


def test_an_identity_with_most_photos_and_an_empty_split_are_named(tmp_path: Path) -> None:
    source = write_list(tmp_path, ["same"] * 10 + ["Ann"])
    warnings = build(options(source, tmp_path / "out", val_share=0, test_share=0.5)).warnings
    assert any("identity 'same' has 10 of 11 photos" in warning for warning in warnings)
    source = write_list(tmp_path / "all", ["same"] * 10)
    warnings = build(options(source, tmp_path / "other", val_share=0.2)).warnings
    assert any("there is no validation split, although --val-share is 0.2" in warning for warning in warnings)
    assert not any("no test split" in warning for warning in warnings)


def test_ordinary_identities_give_no_warning(tmp_path: Path) -> None:
    source = write_list(tmp_path, [f"p{n // 4}" for n in range(40)])
    result = build(options(source, tmp_path / "out"))
    assert result.warnings == ()
    assert result.left_out == ()
