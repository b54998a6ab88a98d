"""All of benchmarks/gpu_day.py in miniature, and on a machine that has little more than torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.data_variants import make_photos, make_shards
from benchmarks.gpu_day import COMPLETE, main
from tests.tiny import ROOT

MISSING = (
    "deepspeed ray submitit webdataset facenet_pytorch tyro rich simplejpeg cv2 optuna sklearn scipy matplotlib"
    " tensorboard torch_fidelity pyarrow wandb mlflow"
)
BARE = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {MISSING.split()!r}:
            return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):  # packages' metadata, which torch looks up
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
from benchmarks.gpu_day import main
sys.exit(main([*sys.argv[1:], "--list"]) or main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_everything_runs_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--miniature", "--device", "cpu", "--output", str(tmp_path), "--commit", "abc"]
    assert main(words) == COMPLETE
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["problems"] == {}
    done = results["done"]
    assert all(each["commit"] == "abc" and each["date"] for each in done.values())
    assert done["mae-b/plain"]["values"]["images_per_second"] > 0
    assert done["parity/mae, fsdp2, bf16"]["values"]["weights"] < 1e-3
    for objective in ("mae", "pf_mag"):
        values = done[f"resume/{objective}, default algorithms"]["values"]
        assert (values["repeated"], values["resumed"]) == (0, 0)
    assert done["reading/stream"]["values"]["real_over_synthetic"] > 0
    assert "poker_neutralised_rate" in done["poker-face/pf-vit, seed 1"]["values"]
    page = (tmp_path / "results.md").read_text()
    assert all(f"| {name} |" in page for name in done)
    capsys.readouterr()
    assert main(words) == COMPLETE  # nothing is measured twice
    assert "results.md: complete" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["done"] == done


@pytest.mark.slow
def test_it_runs_where_only_torch_timm_and_torchmetrics_are_installed(tmp_path: Path) -> None:
    shards = make_shards(make_photos(tmp_path / "photos", 64, 32), tmp_path / "shards", 32, val_share=0.1)
    words = ["--miniature", "--device", "cpu", "--output", str(tmp_path / "day"), "--shards", str(shards)]
    command = [sys.executable, "-c", BARE, *words, "--part", "1", "--part", "5", "--part", "8"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == COMPLETE, done.stderr
    assert "     fer2013/judge, seed 0\n" in done.stdout  # the list
    results = json.loads((tmp_path / "day" / "results.json").read_text())
    missing = {"mae-b/zero2, eager": "deepspeed"}
    missing |= {f"reading/stream, host crops{end}": "cv2" for end in ("", ", compiled")}
    assert {name: problem.split(",")[0] for name, problem in results["problems"].items()} == {
        name: f"needs {package}" for name, package in missing.items()
    }
    assert {"mae-b/plain", "mae-b/fsdp2, eager", "reading/stream", "fer2013/pf-vit, seed 1"} <= set(results["done"])
