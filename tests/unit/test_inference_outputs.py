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


def test_names_are_as_long_as_files_may_have_them(model_folder: Path, tmp_path: Path) -> None:
    """In bytes: of the inputs, of which pictures take the start, and of the outputs, whose temporary files have longer
    ones.
    """
    wide = "\u8868"  # three bytes
    (tmp_path / "in").mkdir()
    photo = models.face_pictures(tmp_path / "in", 1, side=48)[0].rename(tmp_path / "in" / f"{wide * 83}.png")
    film = models.write_video(tmp_path / "film.mp4", list(models.rendered(3, 48)))
    film = film.rename(tmp_path / "in" / f"x{wide * 83}.mp4")
    words = ["--model", str(model_folder), "--no-detect"]
    drawn, poker, table = tmp_path / "drawn", tmp_path / "poker", tmp_path / f"{'t' * 243}.csv"
    pictures = ["--annotate", str(drawn), "--poker-face", str(poker)]
    assert main(["predict", str(photo.parent), *words, *pictures, "--output", str(table)]) == 0
    stems = [f"000000_x{wide * 26}", f"000001_{wide * 26}"]
    assert sorted(path.name for path in drawn.iterdir()) == [f"{stems[0]}.mp4", f"{stems[1]}.jpg"]
    faces = [*(f"{stems[0]}_frame{number:07d}_face0.png" for number in range(3)), f"{stems[1]}_face0.png"]
    assert sorted(path.name for path in poker.iterdir()) == faces
    one = tmp_path / "one" / f"{'v' * 251}.mp4"
    assert main(["predict", str(film), *words, "--annotate", str(one)]) == 0
    assert list(one.parent.iterdir()) == [one]
    assert table.is_file()
