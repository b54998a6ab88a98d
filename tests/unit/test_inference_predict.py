"""`pfcluster predict` on files: tables, pictures, videos, bad input, and going on after an interrupt."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

import pfcluster
from pfcluster.cli.main import main
from pfcluster.inference.errors import InferenceError
from pfcluster.inference.faces import Face
from pfcluster.inference.pipeline import Position
from pfcluster.inference.sources import list_inputs
from pfcluster.inference.tables import PartialTable
from pfcluster.inference.tracking import FaceTracker
from tests import inference_models as models

real_data = pytest.mark.skipif("PFCLUSTER_REAL_DATA" not in os.environ, reason="PFCLUSTER_REAL_DATA is not set")


def test_tables_of_all_formats_hold_the_same_rows(model_folder: Path, photos: Path, tmp_path: Path) -> None:
    words = ["predict", str(photos), "--model", str(model_folder), "--no-detect", "--device", "cpu", "--output"]
    for suffix in ("csv", "jsonl", "parquet"):
        assert main([*words, str(tmp_path / f"out.{suffix}")]) == 0
    table = pandas.read_csv(tmp_path / "out.csv")
    assert [Path(name).name for name in table["source"]] == [
        *[f"face{n}.png" for n in range(3)],
        "face0.png",
        "face1.png",
    ]
    assert table[[f"p_{name}" for name in models.CLASSES]].sum(axis=1).round(4).eq(1).all()
    pandas.testing.assert_frame_equal(table, pandas.read_parquet(tmp_path / "out.parquet"), check_dtype=False)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == table["label"].tolist()
    assert not list(tmp_path.glob("*.partial"))
    model = pfcluster.load(model_folder, device="cpu")
    frame = model.predict([Path(name) for name in table["source"]], detect=False, batch_size=2).to_frame()
    assert frame["label"].tolist() == table["label"].tolist()


def test_python_takes_every_form_of_an_image(model_folder: Path, photos: Path) -> None:
    model, path = pfcluster.load(model_folder, device="cpu"), photos / "face0.png"
    pixels = np.array(Image.open(path))
    import torch

    forms = [path, str(path), Image.open(path), pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
    features = model.features(forms, detect=False)
    assert features.shape == (5, 32)
    assert (features == features[0]).all()
    assert model.predict(np.stack([pixels, pixels]), detect=False)[1].source == "image 1"
    assert model.predict([], detect=False).to_frame().empty
    for wrong, reason in (
        (pixels.astype(np.float32), "must be uint8"),
        (pixels[..., :2], "must have the shape h w 3"),
        (3, "must be a path, a pillow image"),
        ([photos / "missing.png"], "missing.png cannot be read: No such file"),
        ("film.mp4", "is a video"),
    ):
        with pytest.raises(InferenceError, match=reason):
            model.predict(wrong, detect=False)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header names a size, and little else."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def bad_files(folder: Path) -> dict[str, str]:
    """Write files that cannot be read; name -> reason."""
    jpeg = io.BytesIO()
    Image.fromarray(models.rendered(1, 64)[0]).save(jpeg, "JPEG")
    contents = {
        "cut.jpg": jpeg.getvalue()[:900],
        "empty.jpg": b"",
        "film.mp4": b"no video" * 50,
        "huge.png": png_of(60_000, 60_000),
        "text.png": b"hello",
        "zero.avi": b"",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    reasons = ("truncated", "the file is empty", "not a video that OpenCV can read", "more than 100000000 px")
    return dict(zip(contents, (*reasons, "not an image of a known format", "the file is empty"), strict=True))


def odd_files(folder: Path) -> list[str]:
    """Write photos of uncommon kinds that can be read."""
    image = Image.fromarray(models.rendered(1, 64)[0])
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    image.save(folder / "moving.gif", save_all=True, append_images=[image.rotate(90)] * 2, duration=40)
    return ["alpha.png", "cmyk.jpg", "deep.png", "moving.gif"]


def test_bad_files_are_rows_and_the_others_go_on(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Broken links, too, of photos and of videos."""
    (tmp_path / "in").mkdir()
    bad, odd = bad_files(tmp_path / "in"), odd_files(tmp_path / "in")
    for name in ("lost.mp4", "lost.png"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "nowhere")
        bad[name] = "No such file or directory"
    words = ["predict", str(tmp_path / "in"), "--model", str(model_folder), "--no-detect", "--output"]
    assert main([*words, str(tmp_path / "out.csv")]) == 0
    table = {Path(row["source"]).name: row for row in models.rows(tmp_path / "out.csv")}
    assert sorted(table) == sorted([*bad, *odd])
    for name, reason in bad.items():
        assert reason in table[name]["reason"], name
        assert not table[name]["label"]
    assert all(table[name]["label"] in models.CLASSES for name in odd)
    capsys.readouterr()
    del bad["lost.mp4"], bad["lost.png"]
    assert main(["predict", *(str(tmp_path / "in" / name) for name in bad), *words[2:-1]]) == 2
    captured = capsys.readouterr()
    assert "none of the 6 inputs can be read" in captured.err
    assert len(captured.out.splitlines()) == 6


@pytest.mark.skipif("sys.platform == 'darwin'", reason="file names are UTF-8")
def test_names_that_are_not_utf8_are_escaped_in_all_tables(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those of videos and pictures; an attempt goes on after them."""
    folder = tmp_path / os.fsdecode(b"in\xff")
    folder.mkdir()
    models.face_pictures(folder, 1, side=48)[0].rename(folder / os.fsdecode(b"a\xe9.png"))
    models.write_video(folder / os.fsdecode(b"b\xe9.mp4"), list(models.rendered(2, 48)))
    (folder / "c\u00e9.png").write_bytes(b"no image")
    words = ["predict", str(folder), "--model", str(classifier), "--no-detect"]
    sources = [
        f"{tmp_path}/in\\udcff/{name}" for name in ("a\\udce9.png", "b\\udce9.mp4", "b\\udce9.mp4", "c\u00e9.png")
    ]
    for suffix, read in (("csv", pandas.read_csv), ("parquet", pandas.read_parquet)):
        assert main([*words, "--output", str(tmp_path / f"out.{suffix}")]) == 0
        assert list(read(tmp_path / f"out.{suffix}")["source"]) == sources
    output, drawn = tmp_path / os.fsdecode(b"\xff.jsonl"), tmp_path / os.fsdecode(b"drawn\xff")
    assert main([*words, "--output", str(output), "--annotate", str(drawn)]) == 0
    assert [json.loads(line)["source"] for line in output.read_text().splitlines()] == sources
    assert sorted(path.name for path in drawn.iterdir()) == ["000000_a_.jpg", "000001_b_.mp4"]
    table = PartialTable(tmp_path / "kept.csv", {"model": "a"})
    table.append([Face(str(folder)).to_row(())], Position(1))
    table.close()
    again = PartialTable(tmp_path / "kept.csv", {"model": "a"})
    assert again.rows == 1
    again.finish(())
    assert models.rows(tmp_path / "kept.csv")[0]["source"] == f"{tmp_path}/in\\udcff"
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().out.startswith(f"{sources[0]} face 0")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["missing.jpg"], "missing.jpg does not exist"),
        (["*.nothing"], "no photo and no video matches"),
        (["{folder}"], "holds no photo and no video"),
        (["97"], "webcam 97 cannot be opened"),
        (["{photo}", "--model", "nowhere/else/x"], "no model nowhere/else/x"),
        (["{photo}", "--model", "{folder}"], "has no config.json"),
        (["{photo}", "--output", "table.txt"], "--output must end in .csv, .jsonl, .parquet"),
        (["{photo}", "--output", "none/table.csv"], "there is no folder none"),
        (["{photo}", "--poker-face", "{folder}"], "has no generator of poker faces"),
        (["{photo}", "--annotate", "x.mp4"], "is one video, but the inputs are not"),
        (["{photo}", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["{photo}", "--frame-step", "0"], "--frame-step must be at least 1"),
        (["{photo}", "--device", "tpu"], "--device must be auto, cpu, cuda"),
        ([], "missing: INPUT"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    words: list[str],
    reason: str,
    classifier: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    photo = models.face_pictures(tmp_path, 1, side=48)[0]
    words = [word.format(folder=tmp_path / "empty", photo=photo) for word in words]
    model = [] if "--model" in words else ["--model", str(classifier)]
    assert main(["predict", *words, *model, "--no-detect"]) == 2
    assert reason in capsys.readouterr().err


def test_a_missing_extra_is_named(
    classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    words = ["predict", str(photos), "--model", str(classifier), "--no-detect", "--output", str(tmp_path / "x.parquet")]
    assert main(words) == 2
    assert "pip install -e '.[parquet]'" in capsys.readouterr().err


def test_poker_faces_are_pictures_marked_as_synthetic(model_folder: Path, photos: Path, tmp_path: Path) -> None:
    words = ["predict", str(photos), "--model", str(model_folder), "--no-detect", "--output", str(tmp_path / "out.csv")]
    assert main([*words, "--poker-face", str(tmp_path / "poker")]) == 0
    paths = [Path(row["poker_face"]) for row in models.rows(tmp_path / "out.csv")]
    assert sorted(paths) == sorted((tmp_path / "poker").iterdir())
    with Image.open(paths[0]) as picture:
        assert picture.width > picture.height  # side by side
        assert "synthetic" in picture.info["Description"]
        assert "compositeWithTrainedAlgorithmicMedia" in picture.info["XML:com.adobe.xmp"]
        pixels = np.asarray(picture)
    with Image.open(paths[1]) as other:  # the mark, which is the same in every picture, is in the pixels
        band = np.asarray(other)[-16:]
    assert (pixels[-16:] == band).all()
    assert band.min() < 64 < 192 < band.max()


def test_videos_have_times_tracks_and_annotations(model_folder: Path, tmp_path: Path) -> None:
    faces = models.rendered(1, 96)
    frames = [np.roll(faces[0], 3 * shift, axis=1) for shift in range(12)]
    video = models.write_video(tmp_path / "film.mp4", frames)
    words = ["predict", str(video), "--model", str(model_folder), "--no-detect", "--output", str(tmp_path / "out.csv")]
    assert main([*words, "--frame-step", "3", "--max-frames", "10", "--annotate", str(tmp_path / "drawn.mp4")]) == 0
    table = models.rows(tmp_path / "out.csv")
    assert [int(row["frame"]) for row in table] == [0, 3, 6, 9]
    assert [float(row["time_ms"]) for row in table] == pytest.approx([0, 120, 240, 360], abs=1)
    assert {row["track"] for row in table} == {"0"}
    import cv2

    drawn = cv2.VideoCapture(str(tmp_path / "drawn.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    assert drawn.get(cv2.CAP_PROP_FPS) == pytest.approx(25 / 3, abs=0.01)
    assert not list(tmp_path.glob(".*partial*"))
    whole = video.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert main(["predict", str(tmp_path / "cut.mp4"), *words[2:]]) == 2


def test_tracks_follow_overlapping_boxes_over_gaps() -> None:
    tracker = FaceTracker()
    assert tracker.update([(0, 0, 10, 10), (50, 0, 60, 10)]) == [0, 1]
    assert tracker.update([(52, 0, 62, 10), (1, 0, 11, 10)]) == [1, 0]  # in another order
    assert tracker.update([(2, 0, 12, 10)]) == [0]
    tracker = FaceTracker.restored(json.loads(json.dumps(tracker.state())))
    assert tracker.update([(54, 0, 64, 10), (3, 0, 13, 10), (90, 90, 99, 99)]) == [1, 0, 2]
    for _ in range(6):
        tracker.update([])
    assert tracker.update([(54, 0, 64, 10)]) == [3]


def test_files_that_are_skipped_are_counted(
    classifier: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.heic", "b.heic", "deep/c.avif", "deep/without"):
        (photos / name).write_bytes(b"a photo of another format")
    (photos / "lost.jpg").symlink_to(photos / "nowhere.jpg")
    words = ["--model", str(classifier), "--no-detect", "--output", str(tmp_path / "out.csv")]
    skipped = "skipped, not photos or videos by their names: "
    assert main(["predict", "photos", "../" + tmp_path.name + "/photos/deep/*", *words]) == 0
    error = capsys.readouterr().err
    every = "2 *.heic, 1 *.txt, 1 deep/* without a suffix, 1 deep/*.avif, 1 hidden files"
    assert f"photos: 6 {skipped}{every}" in error
    assert f"/photos/deep/*: 2 {skipped}1 * without a suffix, 1 *.avif" in error
    assert len(models.rows(tmp_path / "out.csv")) == 6  # those in photos/deep once
    assert main(["predict", "photos/*.jpg", "photos/deep/*.png", *words]) == 0
    assert "skipped, not" not in capsys.readouterr().err
    assert [row["reason"] for row in models.rows(tmp_path / "out.csv")] == ["No such file or directory", "", ""]
    assert main(["predict", "photos/*", *words]) == 0
    assert "matching folders are not searched (1, such as photos/deep): use photos/*/**" in capsys.readouterr().err
    assert main(["predict", "photos/*.heic", *words]) == 2
    assert f"no photo and no video matches photos/*.heic: 2 {skipped}2 *.heic" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (photos / "a.heic").rename(tmp_path / "other" / "a.heic")
    assert main(["predict", "other", *words]) == 2
    assert f"other holds no photo and no video, at any depth; photos end in .jpg, .png, ... (1 {skipped}1 *.heic)" in (
        capsys.readouterr().err
    )


def test_a_path_is_one_input_however_it_is_spelled(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is spelled first. Links are files of their own, and `..` leads where the system says."""
    monkeypatch.chdir(photos.parent)
    (photos / "link.png").symlink_to("face0.png")
    (photos.parent / "other").symlink_to(photos / "deep")
    spelled = ["photos/face0.png", "./photos/face0.png", "photos//face0.png", str(photos / "face0.png")]
    spelled += ["photos/deep/../face0.png", "other/../face0.png", "ph*/face0.png", "photos/link.png"]
    assert [source.name for source in list_inputs(spelled).sources] == ["photos/face0.png", "photos/link.png"]
    everything = {source.name for source in list_inputs(["photos"]).sources}
    assert {source.name for source in list_inputs(["photos", "./photos/", str(photos)]).sources} == everything


@real_data
def test_real_photos_and_a_video_of_one(classifier: Path, tmp_path: Path) -> None:
    """Two faces side by side are two rows and two tracks; numbers follow the size."""
    folder = Path(os.environ["PFCLUSTER_REAL_DATA"]) / "wild" / "images"
    names = ["Aaron_Peirsol_0003.jpg", "Al_Pacino_0002.jpg"]
    pair = [Image.open(folder / name).convert("RGB").resize((160, 160)) for name in names]
    both = Image.new("RGB", (360, 200), "grey")
    both.paste(pair[0], (10, 20))
    both.paste(pair[1].resize((120, 120)), (210, 40))
    both.save(tmp_path / "both.png")
    frames = [np.roll(np.asarray(both), 4 * shift, axis=1) for shift in range(3)]
    models.write_video(tmp_path / "both.mp4", frames)
    words = ["predict", str(tmp_path), "--model", str(classifier), "--output", str(tmp_path / "out.csv")]
    assert main(words) == 0
    table = models.rows(tmp_path / "out.csv")
    photo = [row for row in table if row["source"].endswith("png")]
    assert [row["face"] for row in photo] == ["0", "1"]
    assert float(photo[0]["left_eye_x"]) < 180 < float(photo[1]["left_eye_x"])
    film = [row for row in table if row["source"].endswith("mp4")]
    assert [(row["frame"], row["track"]) for row in film] == [(str(n), str(t)) for n in range(3) for t in range(2)]
    shutil.copy(folder / names[0], tmp_path / "one.jpg")
    words = ["predict", str(tmp_path / "one.jpg"), "--model", str(classifier), "--faces", "one"]
    assert main(words) == 0
