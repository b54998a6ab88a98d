"""`pfcluster predict` writes neither over nor among its inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfcluster.cli.main import main
from tests import inference_models as models


def test_an_input_is_never_replaced(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    film = models.write_video(Path("film.mp4"), list(models.rendered(3, 48)))
    (tmp_path / "link.mp4").symlink_to(film)
    (tmp_path / "deep").mkdir()
    photo = models.face_pictures(Path("deep"), 1, side=48)[0]
    photo = photo.rename("deep/photo.csv")
    model = ["--model", str(model_folder), "--no-detect"]
    for words, reason in (
        (["film.mp4", "--annotate", "film.mp4"], "--annotate film.mp4 is the input film.mp4"),
        (["film.mp4", "--annotate", "deep/../film.mp4"], "is the input film.mp4"),
        (["link.mp4", "--annotate", str(tmp_path / "film.mp4")], "film.mp4 is the input link.mp4"),
        (["film.mp4", "--annotate", "link.mp4"], "--annotate link.mp4 is the input film.mp4"),
        ([str(photo), "--output", str(photo)], "--output deep/photo.csv is the input deep/photo.csv"),
        ([str(photo), "--poker-face", "deep"], "--poker-face deep is the folder of the input deep/photo.csv"),
        (["film.mp4", "--annotate", "."], "--annotate . is the folder of the input film.mp4"),
    ):
        before = film.read_bytes(), photo.read_bytes(), sorted(tmp_path.rglob("*"))
        assert main(["predict", *words, *model]) == 2
        assert reason in capsys.readouterr().err
        assert before == (film.read_bytes(), photo.read_bytes(), sorted(tmp_path.rglob("*")))


def test_pictures_are_not_written_where_the_next_prediction_looks(
    model_folder: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(photos)
    words = ["--model", str(model_folder), "--no-detect"]
    for source, option, target in (
        ("photos", "--annotate", "photos"),
        ("photos", "--annotate", "photos/drawn"),
        ("photos", "--annotate", "link/deep/drawn"),
        ("link", "--poker-face", "photos/poker"),
        ("photos", "--annotate", "photos/drawn.mp4"),
        ("photos/**/*.*", "--annotate", "photos/new/drawn"),
        ("photos/*/*.png", "--poker-face", "photos/poker"),
    ):
        assert main(["predict", source, *words, option, target]) == 2
        assert f"{option} {target} lies in the" in capsys.readouterr().err
    assert main(["predict", "photos/*.png", *words, "--annotate", "photos"]) == 2
    assert "is the folder of the input photos/face0.png" in capsys.readouterr().err
    for source, option, target in (
        ("photos", "--annotate", "drawn"),
        ("photos", "--annotate", "photos/.drawn"),
        ("photos/*.png", "--annotate", "photos/drawn"),
        ("photos/**/*.png", "--annotate", "photos/new/drawn"),  # as JPEGs
        ("photos/deep", "--annotate", "photos/pictures"),
    ):
        for _ in range(2):
            assert main(["predict", source, *words, option, target]) == 0
        assert not {path.suffix for path in Path(target).iterdir()} - {".jpg"}
