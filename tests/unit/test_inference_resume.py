"""`pfcluster predict` that is interrupted and goes on: kept rows, refused partial tables."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfcluster
from pfcluster.cli.main import main
from pfcluster.inference.crops import WholePhotos
from pfcluster.inference.errors import InferenceError
from pfcluster.inference.faces import Face
from pfcluster.inference.model import Model
from pfcluster.inference.pipeline import Position
from pfcluster.inference.prediction import PredictionOptions, run_prediction
from pfcluster.inference.sources import list_inputs
from pfcluster.inference.tables import PartialTable, partial_file
from tests import inference_models as models


class _Interrupted:
    """A predictor that is interrupted at its n-th batch."""

    def __init__(self, model: Model, batches: int) -> None:
        self.info, self._model, self._left = model.info, model, batches
        self.batches = 0

    def logits(self, crops: np.ndarray) -> np.ndarray:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        self.batches += 1
        return self._model.predictor.logits(crops)

    features = poker_faces = logits


@pytest.mark.parametrize("annotate", [False, True])
def test_an_interrupted_prediction_goes_on(classifier: Path, photos: Path, tmp_path: Path, annotate: bool) -> None:
    """Within a video at the next frame; with --annotate at the video's start, whose file is written anew."""
    models.write_video(photos / "film.mp4", list(models.rendered(40, 48)))
    model = pfcluster.load(classifier, device="cpu")
    sources = list_inputs([str(photos)]).sources
    cropper = WholePhotos(model.info.preprocessing)

    def predict(name: str, batches: int) -> tuple[_Interrupted, Any]:
        predictor = _Interrupted(model, batches)
        drawn = tmp_path / f"drawn-{name}" if annotate else None
        options = PredictionOptions(output=tmp_path / f"{name}.jsonl", batch_size=4, annotate=drawn)
        done = run_prediction(sources, predictor, cropper, options, show=print, advance=lambda counts: None)  # type: ignore[arg-type]
        return predictor, done

    whole, _ = predict("whole", -1)
    with pytest.raises(KeyboardInterrupt):
        predict("cut", 10)
    assert not (tmp_path / "cut.jsonl").exists()
    rest, counts = predict("cut", -1)
    assert counts.kept_rows > 0
    assert rest.batches < whole.batches
    assert (tmp_path / "cut.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    if annotate:
        names = [sorted(path.name for path in (tmp_path / f"drawn-{name}").iterdir()) for name in ("whole", "cut")]
        assert names[0] == names[1]
    else:
        assert counts.kept_rows >= 36


@pytest.mark.parametrize("first", ["bad", "blank"])
def test_a_continued_prediction_that_could_read_nothing_fails(classifier: Path, tmp_path: Path, first: str) -> None:
    """Rows that name unreadable photos are kept, too. A photo without a face was read."""
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(b"no image")
    if first == "blank":
        models.face_pictures(tmp_path, 1, side=48)[0].rename(tmp_path / "0.jpg")
    model = pfcluster.load(classifier, device="cpu")
    sources = list_inputs([str(tmp_path)]).sources

    class NoFaces(WholePhotos):
        def faces(self, photos: Any) -> list[list[Face]]:
            return [[] for _ in photos]

    def predict(interrupt_at: int | None = None) -> Any:
        def advance(counts: Any) -> None:
            if counts.sources == interrupt_at:
                raise KeyboardInterrupt

        options = PredictionOptions(output=tmp_path / "table.csv", batch_size=2)
        cropper = NoFaces(model.info.preprocessing)
        return run_prediction(sources, model.predictor, cropper, options, show=print, advance=advance)

    with pytest.raises(KeyboardInterrupt):
        predict(2)
    if first == "bad":
        with pytest.raises(InferenceError, match=r"none of the 4 inputs can be read; .*3\.jpg"):
            predict()
    else:
        counts = predict()
        assert (counts.frames, counts.kept_rows, counts.kept_frames) == (0, 2, 1)
    assert len(models.rows(tmp_path / "table.csv")) == 4


def test_what_an_interrupt_keeps_is_said(
    classifier: Path, photos: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pfcluster.load(classifier, device="cpu")
    words = ["predict", str(photos), "--output", str(tmp_path / "faces.csv"), "--no-detect", "--batch-size", "1"]
    for batches, kept in ((0, False), (3, True)):
        monkeypatch.setattr("pfcluster.cli.predict._load", lambda _, n=batches: _Interrupted(model, n))
        assert main(words) == 130
        assert ("rows are kept" in capsys.readouterr().err) == kept
        assert (tmp_path / "faces.csv.partial").exists() == kept


def test_rows_of_photos_that_have_changed_are_not_kept(classifier: Path, photos: Path, tmp_path: Path) -> None:
    model = pfcluster.load(classifier, device="cpu")
    sources = list_inputs([str(photos)]).sources

    def predict(batches: int) -> Any:
        options = PredictionOptions(output=tmp_path / "out.csv", batch_size=1)
        predictor = _Interrupted(model, batches)
        cropper = WholePhotos(model.info.preprocessing)
        return run_prediction(sources, predictor, cropper, options, show=print, advance=lambda counts: None)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        predict(2)
    before, state = (photos / "face0.png").read_bytes(), os.stat(photos / "face0.png")
    shutil.copy(photos / "face2.png", photos / "face0.png")
    with pytest.raises(InferenceError, match="photos or videos have changed since; remove the file"):
        predict(-1)
    (photos / "face0.png").unlink()
    with pytest.raises(InferenceError, match="photos or videos have changed since"):
        predict(-1)
    (photos / "face0.png").write_bytes(before)
    os.utime(photos / "face0.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert predict(-1).kept_rows == 2


@pytest.mark.parametrize("field", ["preprocessing", "network", "classes"])
def test_rows_of_a_model_with_the_same_weights_and_another_config_are_not_kept(
    classifier: Path, photos: Path, tmp_path: Path, field: str
) -> None:
    model = pfcluster.load(classifier, device="cpu")
    sources = list_inputs([str(photos)]).sources
    changed = {
        "preprocessing": dataclasses.replace(model.info.preprocessing, jpeg_quality=50),
        "network": dataclasses.replace(model.info.network, size=64),
        "classes": model.info.classes[::-1],
    }

    def predict(batches: int, **changes: Any) -> Any:
        predictor = _Interrupted(model, batches)
        predictor.info = dataclasses.replace(model.info, **changes)
        options = PredictionOptions(output=tmp_path / "out.csv", batch_size=1)
        cropper = WholePhotos(model.info.preprocessing)
        return run_prediction(sources, predictor, cropper, options, show=print, advance=lambda counts: None)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        predict(2)
    with pytest.raises(InferenceError, match="another model, other inputs or other options"):
        predict(-1, **{field: changed[field]})
    assert predict(-1).kept_rows == 2


def test_a_partial_table_of_another_command_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    table = PartialTable(output, {"model": "a"})
    table.append([{"source": "x"}], Position(1))
    with pytest.raises(InferenceError, match="another process is writing"):
        PartialTable(output, {"model": "a"})
    table.close()
    with open(table.path, "ab") as file:
        file.write(b'{"row": {"source": "y"}}\n{"row": ')  # cut by a crash
    with pytest.raises(InferenceError, match="another model, other inputs or other options"):
        PartialTable(output, {"model": "b"})
    again = PartialTable(output, {"model": "a"})
    assert (again.start, again.rows) == (Position(1), 1)
    again.close()
    assert table.path.read_text().count("\n") == 3


@pytest.mark.parametrize("marker", [{"after": {"source": 1}}, {"after": {"photo": 1}, "readable": True}])
def test_a_partial_table_with_other_markers_is_refused(tmp_path: Path, marker: dict[str, Any]) -> None:
    output = tmp_path / "out.csv"
    with partial_file(output).open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in ({"command": {"model": "a"}}, {"row": {}}, marker))
    with pytest.raises(InferenceError, match=r"out\.csv\.partial has a marker without all of its fields; remove the"):
        PartialTable(output, {"model": "a"})


def test_a_partial_table_without_rows_is_no_obstacle(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither of a command that was refused, nor of one that was killed."""
    photo = models.face_pictures(tmp_path, 1, side=48)[0]
    words = ["predict", str(photo), "--model", str(model_folder), "--no-detect", "--output", str(tmp_path / "out.csv")]
    (tmp_path / "drawn").write_text("a file")
    assert main([*words, "--annotate", str(tmp_path / "drawn")]) == 2
    assert "drawn is a file; pass a folder" in capsys.readouterr().err
    (tmp_path / "folder.mp4").mkdir()
    film = models.write_video(tmp_path / "film.mp4", list(models.rendered(2, 48)))
    assert main(["predict", str(film), *words[2:], "--annotate", str(tmp_path / "folder.mp4")]) == 2
    assert "folder.mp4 is a folder" in capsys.readouterr().err
    partial = tmp_path / "out.csv.partial"
    assert not partial.exists()
    PartialTable(tmp_path / "out.csv", {"model": "a"}).close()
    assert not partial.exists()
    partial.write_text('{"command": {"model": "b"}}\n{"row": ')
    assert main(words) == 0
    partial.write_text("notes of someone\n")
    assert main(words) == 2
    assert partial.read_text() == "notes of someone\n"
