"""The package installed from a wheel, in an empty folder without a checkout."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import inference_models
from tests.tiny import OPTIONS, ROOT

pytestmark = pytest.mark.slow
FILES = ("pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's contents and its `pfcluster` script."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT / "pfcluster", source / "pfcluster", ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(source / "dist"), str(source)], check=True
    )
    (wheel,) = (source / "dist").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    return target


def pfcluster(installed: Path, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a folder."""
    return subprocess.run(
        [sys.executable, str(installed / "bin" / "pfcluster"), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "160"} | environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_installed_command_prints_help_and_version(installed, tmp_path):
    assert pfcluster(installed, tmp_path, "--version").stdout.startswith("pfcluster 0.")
    done = pfcluster(installed, tmp_path, "demo", "--help")
    assert done.returncode == 0, done.stderr
    assert "--max-parallel" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_installed_command_trains_and_reports(installed, tmp_path):
    tiny = [*OPTIONS, "--seeds", "0", "--epochs", "0.5", "--executor", "local", "--output", "study"]
    for words in (["finetune", "--preset", "demo", *tiny], ["report", "study"]):
        done = pfcluster(installed, tmp_path, *words)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "study/report/report.html").exists()
    assert "finished" in pfcluster(installed, tmp_path, "status", "study").stdout
    module = subprocess.run(
        [sys.executable, "-c", "import pfcluster; print(pfcluster.__file__)"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert module.stdout.startswith(str(installed))


def test_installed_models_predict_and_name_each_other(installed, tmp_path):
    """In an empty folder, without a network."""
    face = inference_models.face_pictures(tmp_path, 1)[0]
    words = ["predict", face.name, "--device", "cpu", "--output", "faces.csv", "--poker-face", "pictures", "--model"]
    done = pfcluster(installed, tmp_path, *words, "builtin:synthetic", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "faces.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row[f"p_{row['label']}"]) > 0.125
    assert (tmp_path / row["poker_face"]).exists()
    refused = pfcluster(installed, tmp_path, *words, "builtin:none")
    assert refused.returncode == 2
    assert "no model builtin:none: this installation has builtin:" in refused.stderr
    assert "builtin:synthetic" in refused.stderr


def test_installed_command_prints_batch_scripts_without_slurm(installed, tmp_path):
    words = ["pretrain", "--preset", "demo", "--nodes", "4", "--executor", "slurm", "--dry-run"]
    done = pfcluster(installed, tmp_path, *words, PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --nodes=4" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_installed_sweep_and_reproduction_print_their_plans(installed, tmp_path):
    for words in (["sweep", *OPTIONS, "--executor", "local"], ["reproduce", "--miniature", "--executor", "local"]):
        done = pfcluster(installed, tmp_path, *words, "--dry-run")
        assert done.returncode == 0, done.stderr


def test_code_snapshot_of_the_installed_package_runs(installed, tmp_path):
    """A SLURM job runs the copy: it must be complete without the installed package."""
    code = "import sys; from pathlib import Path; from pfcluster.launch.code_snapshot import snapshot;"
    made = subprocess.run(
        [sys.executable, "-c", f"{code} print(snapshot(Path('runs')))"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    copied = {path.relative_to(made) for path in Path(made).rglob("*") if path.is_file()}
    packaged = {path.relative_to(installed) for path in (installed / "pfcluster").rglob("*") if path.is_file()}
    weights = Path("pfcluster/inference/weights")  # no job predicts
    assert {path for path in packaged if path.suffix != ".pyc" and weights not in path.parents} <= copied
    done = subprocess.run(
        [sys.executable, "-m", "pfcluster", "--help"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": made}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
