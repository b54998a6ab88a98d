"""A build is finished only for the input that it was made from: every field that decides the result, and the bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pfcluster.cli.inspect import main as inspect
from pfcluster.data.build.errors import BuildError
from pfcluster.data.build.pipeline import build, require_same_listing
from pfcluster.data.build.plan import listing_digest
from pfcluster.data.manifest import MANIFEST, ShardError
from pfcluster.data.raw.base import RawDataset, RawPhoto
from tests.photos import make_folder, options, picture

PHOTO = RawPhoto("a.png", "happy", "p1", "/data/a.png", 0, 10)
CHANGES = {
    "source": "b.png",
    "label": "sad",
    "identity": "p2",
    "size": 11,
    "form": "pixels",
    "split": "test",
    "votes": (1.0,),
    "box": (0.0, 0.0, 4.0, 4.0),
    "landmarks": ((1.0, 2.0),),
}


def digest(photo: RawPhoto) -> str:
    return listing_digest({"input": RawDataset("csv", "faces", (photo,))})


def test_every_listed_field_but_the_place_counts() -> None:
    assert len({digest(PHOTO), *(digest(replace(PHOTO, **{name: value})) for name, value in CHANGES.items())}) == 10
    assert digest(replace(PHOTO, path="/moved/a.png", offset=7)) == digest(PHOTO)


def write_list(root: Path, test_from: int) -> Path:
    rows = ["image,label,split"]
    for number in range(12):
        label = ("happy", "sad")[number % 2]
        picture(label, number).save(root / f"{number:02d}.png")
        rows.append(f"{number:02d}.png,{label},{'test' if number >= test_from else 'train'}")
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    return root / "list.csv"


def test_a_corrected_split_column_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    build(options(write_list(tmp_path / "raw", 8), tmp_path / "out", val_share=0.25))
    assert build(options(tmp_path / "raw/list.csv", tmp_path / "out", val_share=0.25)).photos_now == 0
    write_list(tmp_path / "raw", 6)
    with pytest.raises(BuildError, match="photos, labels, splits or other fields have changed"):
        build(options(tmp_path / "raw/list.csv", tmp_path / "out", val_share=0.25))


def exchange_bytes(first: Path, second: Path) -> None:
    """Exchange two files of equal size, with the times that they had."""
    assert first.stat().st_size == second.stat().st_size
    times = [(path, path.stat()) for path in (first, second)]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    for path, status in times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def bmp_folder(root: Path) -> Path:
    """Uncompressed photos, which all have the same size."""
    folder = make_folder(root, per_class=8)
    for path in sorted(folder.rglob("*.png")):
        picture(path.parent.name, int(path.stem) + 100 * len(path.parent.name)).save(path.with_suffix(".bmp"))
        path.unlink()
    return folder


def test_exchanged_photos_of_a_finished_build_are_noticed(tmp_path: Path) -> None:
    raw = bmp_folder(tmp_path / "raw")
    build(options(raw, tmp_path / "out"))
    exchange_bytes(raw / "happy/000.bmp", raw / "sad/000.bmp")
    with pytest.raises(BuildError, match="built from other photos"):
        build(options(raw, tmp_path / "out"))
    exchange_bytes(raw / "happy/000.bmp", raw / "sad/000.bmp")
    assert build(options(raw, tmp_path / "out")).photos_now == 0
    raw.rename(tmp_path / "moved")
    assert build(options(tmp_path / "moved", tmp_path / "out")).photos_now == 0


def test_exchanged_photos_of_an_interrupted_build_are_noticed(tmp_path: Path) -> None:
    raw = bmp_folder(tmp_path / "raw")
    first = build(options(raw, tmp_path / "out", slice="0/2", samples_per_shard=4))
    assert first.manifest is None
    exchange_bytes(raw / "happy/000.bmp", raw / "happy/001.bmp")
    with pytest.raises(BuildError, match=r"have changed since the build in .* was planned"):
        build(options(raw, tmp_path / "out", slice="1/2", samples_per_shard=4))
    exchange_bytes(raw / "happy/000.bmp", raw / "happy/001.bmp")  # the same contents, other times
    finished = build(options(raw, tmp_path / "out", slice="1/2", samples_per_shard=4))
    assert finished.manifest is not None


def test_a_manifest_without_contents_is_named(tmp_path: Path) -> None:
    raw = make_folder(tmp_path / "raw")
    build(options(raw, tmp_path / "out"))
    values = json.loads((tmp_path / "out" / MANIFEST).read_bytes())
    del values["source"]["plan_sha256"]
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(BuildError, match="did not record the contents of its input"):
        build(options(raw, tmp_path / "out"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def invert(path: Path) -> None:
    path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train-00000.tar", Path.unlink, "train-00000.tar is missing"),
        ("train-00000.tar", cut, r"train-00000.tar has \d+ bytes instead of \d+"),
        ("train-00001.index.json", Path.unlink, "train-00001.index.json is missing"),
        ("train-00001.index.json", empty, r"train-00001.index.json \(0 bytes\) has changed since it was built"),
        ("validation-00000.index.json", cut, r"0.index.json \(\d+ bytes\) has changed since it was built"),
        ("train-00000.crc32", invert, r"train-00000.crc32 \(32 bytes\) has changed since it was built"),
        ("train-00001.crc32", cut, r"train-00001.crc32 has 31 bytes instead of 32"),
    ],
)
def test_missing_and_damaged_files_of_a_finished_build_are_named(
    raw: Path, damaged: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(damaged / name)
    remedy = "; copy these files there again, or delete the folder and build it again"
    with pytest.raises(ShardError, match=message + remedy):
        build(options(raw, damaged, val_share=0.25))
    with pytest.raises(ShardError, match=message + remedy):
        require_same_listing(options(raw, damaged, val_share=0.25))
    assert not (damaged / ".build").exists()


def test_inspect_names_missing_and_cut_files(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect([str(damaged), "--no-quality"]) == 0
    index = damaged / "train-00001.index.json"
    complete = index.read_bytes()
    cut(index)
    assert inspect([str(damaged), "--no-quality"]) == 2
    assert f"train-00001.index.json ({len(complete) - 1} bytes) has changed since" in capsys.readouterr().err
    index.write_bytes(complete)
    for shard in damaged.glob("train-*.tar"):
        shard.unlink()
    assert inspect([str(damaged), "--no-quality"]) == 2
    assert "train-00000.tar is missing, train-00001.tar is missing" in capsys.readouterr().err


def test_a_table_whose_folder_was_renamed_is_the_same_input(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    write_list(tmp_path / "raw", 8)
    first = build(options(tmp_path / "raw/list.csv", tmp_path / "out", slice="0/2", samples_per_shard=2))
    assert first.manifest is None
    (tmp_path / "raw").rename(tmp_path / "moved")
    second = build(options(tmp_path / "moved/list.csv", tmp_path / "out", slice="1/2", samples_per_shard=2))
    assert second.manifest is not None
    assert second.manifest.name == "raw"
    (tmp_path / "moved").rename(tmp_path / "again")
    require_same_listing(options(tmp_path / "again/list.csv", tmp_path / "out", samples_per_shard=2))
    assert build(options(tmp_path / "again/list.csv", tmp_path / "out", samples_per_shard=2)).photos_now == 0
    with pytest.raises(BuildError, match=r"options\.name was 'raw', now 'again'"):
        build(options(tmp_path / "again/list.csv", tmp_path / "out", samples_per_shard=2, name="again"))


def test_a_build_with_a_name_is_repeated_without_it(tmp_path: Path) -> None:
    raw = make_folder(tmp_path / "raw", 4)
    build(options(raw, tmp_path / "out", name="mine"))
    assert build(options(raw, tmp_path / "out")).photos_now == 0
