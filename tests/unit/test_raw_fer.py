"""Readers of FER2013, FERPlus, CK+, JAFFE, SFEW and parquet files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfcluster.data.build.plan import subsample
from pfcluster.data.labels import CANONICAL
from pfcluster.data.raw.base import RawDataError, ReadOptions, VotingMode, read_bytes
from pfcluster.data.raw.fer2013 import vote
from pfcluster.data.raw.readers import read_raw
from pfcluster.data.raw.spool import spool
from tests.unit.test_raw_datasets import rows, write

SPLITS = ["Training", "Training", "PublicTest", "PrivateTest", "Training"]


def pixels(number: int) -> np.ndarray:
    return (np.arange(16).reshape(4, 4) * 16 + number).astype(np.uint8)


def fer2013(path: Path, newline: str = "\n") -> Path:
    lines = ["emotion,pixels,Usage"]
    lines += [f"{n},{' '.join(map(str, pixels(n).reshape(-1)))},{split}" for n, split in enumerate(SPLITS)]
    return write(path, newline.join(lines) + newline)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_fer2013_rows_are_images(tmp_path: Path, newline: str) -> None:
    dataset = read_raw(fer2013(tmp_path / "fer2013.csv", newline))
    assert rows(dataset) == [
        ("fer0000000.png", "anger", "train"),
        ("fer0000001.png", "disgust", "train"),
        ("fer0000002.png", "fear", "validation"),
        ("fer0000003.png", "happiness", "test"),
        ("fer0000004.png", "sadness", "train"),
    ]
    for number, photo in enumerate(dataset.photos):
        with Image.open(io.BytesIO(read_bytes(photo))) as picture:
            assert (np.array(picture) == pixels(number)).all()
    assert rows(read_raw(tmp_path)) == rows(dataset)


def test_icml_face_data_columns(tmp_path: Path) -> None:
    write(tmp_path / "icml_face_data.csv", 'emotion, Usage, pixels\n6,PublicTest,"1 2 3 4"\n')
    photo = read_raw(tmp_path).photos[0]
    assert (photo.label, photo.split) == ("neutral", "validation")
    assert read_bytes(photo) == b"P5 2 2 255\n\1\2\3\4"


@pytest.mark.parametrize("text", ["1 2 3", "1 2 3 256", "1 2 x 4", ""])
def test_invalid_grey_values_are_refused(tmp_path: Path, text: str) -> None:
    dataset = read_raw(write(tmp_path / "fer2013.csv", f"emotion,pixels,Usage\n1,{text},Training\n"))
    with pytest.raises(OSError, match="pixels"):
        read_bytes(dataset.photos[0])
    with pytest.raises(RawDataError, match="row 1: 2 cells"):
        read_raw(write(tmp_path / "fer2013.csv", "emotion,pixels,Usage\n1,2\n"))


#        neutral happiness surprise sadness anger disgust fear contempt unknown NF
VOTES = {
    "clear": (6, 1, 1, 0, 0, 2, 0, 0, 0, 0),
    "half": (5, 5, 0, 0, 0, 0, 0, 0, 0, 0),
    "three": (4, 3, 3, 0, 0, 0, 0, 0, 0, 0),
    "scattered": (2, 2, 2, 2, 2, 0, 0, 0, 0, 0),
    "unknown second": (5, 0, 0, 0, 0, 0, 0, 0, 5, 0),
    "no face": (0, 1, 0, 0, 0, 0, 0, 0, 0, 9),
}
EXPECTED: dict[VotingMode, dict[str, tuple[str, dict[str, float]]]] = {
    "majority": {
        "clear": ("neutral", {"neutral": 1.0}),
        "half": ("unknown", {}),
        "three": ("unknown", {}),
        "scattered": ("unknown", {}),
        "unknown second": ("unknown", {}),
        "no face": ("no-face", {}),
    },
    "probability": {
        "clear": ("neutral", {"neutral": 1.0}),  # 6 of 8 certain votes are three quarters
        "half": ("neutral", {"neutral": 0.5, "happiness": 0.5}),
        "three": ("neutral", {"neutral": 0.4, "happiness": 0.3, "surprise": 0.3}),
        "scattered": ("unknown", {}),
        "unknown second": ("unknown", {}),  # the rest has at most half of the votes
        "no face": ("no-face", {}),
    },
    "multi-target": {
        "clear": ("neutral", {"neutral": 1.0}),
        "half": ("neutral", {"neutral": 0.5, "happiness": 0.5}),
        "three": ("neutral", {"neutral": 0.4, "happiness": 0.3, "surprise": 0.3}),
        "scattered": ("unknown", {}),
        "unknown second": ("neutral", {"neutral": 1.0}),
        "no face": ("no-face", {}),
    },
    "argmax": {
        "clear": ("neutral", {"neutral": 0.6, "happiness": 0.1, "surprise": 0.1, "disgust": 0.2}),
        "half": ("neutral", {"neutral": 0.5, "happiness": 0.5}),
        "three": ("neutral", {"neutral": 0.4, "happiness": 0.3, "surprise": 0.3}),
        "scattered": ("neutral", dict.fromkeys(("neutral", "happiness", "surprise", "sadness", "anger"), 0.2)),
        "unknown second": ("neutral", {"neutral": 1.0}),
        "no face": ("no-face", {}),
    },
}


@pytest.mark.parametrize("case", VOTES)
@pytest.mark.parametrize("mode", EXPECTED)
def test_votes_become_labels_as_in_microsoft_ferplus(mode: VotingMode, case: str) -> None:
    label, shares = vote(VOTES[case], mode)
    expected_label, expected = EXPECTED[mode][case]
    assert label == expected_label
    assert {name: share for name, share in zip(CANONICAL, shares) if share} == pytest.approx(expected)  # noqa: B905


def ferplus(root: Path) -> Path:
    header = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    names = ["fer0000000.png", "", "fer0000002.png", "fer0000003.png", "fer0000004.png"]
    votes = ["8,0,0,2,0,0,0,0,0,0", "0,0,0,0,0,0,0,0,0,10", "5,5,0,0,0,0,0,0,0,0", *["0,0,0,0,0,0,0,10,0,0"] * 2]
    lines = [",".join(parts) for parts in zip(SPLITS, names, votes, strict=True)]
    write(root / "fer2013new.csv", "\n".join([header, *lines]) + "\n")
    fer2013(root / "fer2013.csv")
    return root


def test_ferplus_labels_fer2013_photos_by_row(tmp_path: Path) -> None:
    dataset = read_raw(ferplus(tmp_path), ReadOptions(votes="multi-target"))
    assert (dataset.kind, dataset.votes) == ("ferplus", "multi-target")
    assert rows(dataset) == [
        ("fer0000000.png", "neutral", "train"),
        ("fer0000001.png", "no image name", "train"),
        ("fer0000002.png", "neutral", "validation"),
        ("fer0000003.png", "contempt", "test"),
        ("fer0000004.png", "contempt", "train"),
    ]
    assert dataset.photos[2].votes == (0.5, 0.5, 0, 0, 0, 0, 0, 0)
    assert subsample(dataset, 2, 0).votes == "multi-target"
    assert read_raw(tmp_path).photos[2].label == "unknown"  # half of the votes is not a majority


def test_ferplus_with_image_files_or_without_photos(tmp_path: Path) -> None:
    (ferplus(tmp_path) / "fer2013.csv").unlink()
    with pytest.raises(RawDataError, match=r"no photos: put FER2013's fer2013\.csv next to"):
        read_raw(tmp_path)
    write(tmp_path / "FER2013Valid" / "fer0000002.png", b"two")
    photos = read_raw(tmp_path).photos
    assert [photo.size for photo in photos] == [-1, -1, 3, -1, -1]


def test_ferplus_refuses_another_fer2013_csv(tmp_path: Path) -> None:
    table = ferplus(tmp_path) / "fer2013.csv"
    text = table.read_text()
    table.write_text(text.replace("PublicTest", "Training"))
    with pytest.raises(RawDataError, match="row 3 is 'PublicTest'"):
        read_raw(tmp_path)
    table.write_text(text.rsplit("\n", 2)[0] + "\n")
    with pytest.raises(RawDataError, match=r"4 rows and fer2013new\.csv 5"):
        read_raw(tmp_path)


def test_ckplus_first_frame_is_neutral_and_last_frames_have_the_label(tmp_path: Path) -> None:
    for sequence, frames in (("001", 4), ("002", 3)):
        for number in range(1, frames + 1):
            write(tmp_path / "cohn-kanade-images" / "S005" / sequence / f"S005_{sequence}_{number:08d}.png")
    write(tmp_path / "Emotion" / "S005" / "001" / "S005_001_00000004_emotion.txt", "   3.0000000e+00\n")
    (tmp_path / "Emotion" / "S005" / "002").mkdir()  # a sequence without an emotion
    dataset = read_raw(tmp_path, ReadOptions(peak_frames=2))
    assert [(photo.source[-5], photo.label, photo.identity) for photo in dataset.photos] == [
        ("1", "neutral", "S005"),
        ("3", "disgust", "S005"),
        ("4", "disgust", "S005"),
    ]
    write(tmp_path / "Emotion" / "S005" / "001" / "S005_001_00000004_emotion.txt", "happy")
    with pytest.raises(RawDataError, match="expected a single emotion number"):
        read_raw(tmp_path)


def test_jaffe_file_names_give_person_and_emotion(tmp_path: Path) -> None:
    for name in ("KA.AN1.39.tiff", "KM.SU3.11.tiff"):
        write(tmp_path / name)
    photos = read_raw(tmp_path).photos
    assert [(photo.label, photo.identity) for photo in photos] == [("anger", "KA"), ("surprise", "KM")]


def test_sfew_validation_set_is_the_test_split(tmp_path: Path) -> None:
    for folder in ("Train", "Val", "Train_Aligned_Faces", "Val_Aligned_Faces_new"):
        for name in ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"):
            (tmp_path / folder / name).mkdir(parents=True)
        write(tmp_path / folder / "Happy" / "x.png", folder)
    write(tmp_path / "Test" / "y.png")
    dataset = read_raw(tmp_path)
    assert rows(dataset) == [
        ("Train_Aligned_Faces/Happy/x.png", "Happy", "train"),
        ("Val_Aligned_Faces_new/Happy/x.png", "Happy", "test"),
    ]
    assert read_bytes(read_raw(tmp_path, ReadOptions(originals=True)).photos[1]) == b"Val"


def parquet(path: Path, labels: list[object], names: list[str] | None) -> Path:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as arrow_parquet

    images = [{"bytes": f"{path.stem} {number}".encode(), "path": None} for number in range(len(labels))]
    table = arrow.table({"image": images, "label": labels})
    if names is not None:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(info).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    arrow_parquet.write_table(table, path, row_group_size=2)
    return path


def test_parquet_photos_are_extracted_in_order(tmp_path: Path) -> None:
    parquet(tmp_path / "hf" / "data" / "train-00000-of-00001.parquet", [1, 0, 1], ["happy", "sad"])
    parquet(tmp_path / "hf" / "data" / "test-00000-of-00001.parquet", [0], ["happy", "sad"])
    dataset = spool(read_raw(tmp_path / "hf"), tmp_path / "spool")
    assert [(photo.label, photo.split) for photo in dataset.photos] == [
        ("happy", "test"),
        ("sad", "train"),
        ("happy", "train"),
        ("sad", "train"),
    ]
    assert [read_bytes(photo) for photo in dataset.photos] == [
        b"test-00000-of-00001 0",
        *(f"train-00000-of-00001 {number}".encode() for number in range(3)),
    ]
    before = (tmp_path / "spool").stat().st_mtime_ns
    spool(read_raw(tmp_path / "hf"), tmp_path / "spool")
    assert (tmp_path / "spool").stat().st_mtime_ns == before


def test_invalid_parquet_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RawDataError, match="the metadata do not name them"):
        read_raw(parquet(tmp_path / "a.parquet", [1, 2], None))
    assert read_raw(parquet(tmp_path / "b.parquet", ["fear", None], None)).photos[0].label == "fear"
    with pytest.raises(RawDataError, match="not a valid parquet file"):
        read_raw(write(tmp_path / "c.parquet", b"PAR1 nothing"))
