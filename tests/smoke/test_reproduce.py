"""`jobs/launch.py reproduce` from nothing to its tables, as a user calls it."""

from __future__ import annotations

import json
import shlex
import subprocess

from tests.studies import Page
from tests.tiny import LAUNCH

TINY = shlex.split(
    "--data.size 32 --data.synthetic.train 96 --data.synthetic.validation 24 --data.synthetic.test 40"
    " --data.synthetic.identities 12 --epochs 1 --batch-size 16 --pf-mag.warmup-steps 2 --pf-mag.loss-balancing-steps 2"
    " --evaluate.n-poker-faces 16 --engine.device cpu"
)


def test_the_miniature_goes_from_nothing_to_tables_and_then_has_nothing_to_do(tmp_path):
    output = tmp_path / "paper"
    call = [*LAUNCH, "reproduce", "--miniature", "--executor", "local", "--seeds", "0", "1", "--tables", "separator"]
    call += ["--output", str(output), *TINY]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    values = json.loads((output / "tables/tables.json").read_text())
    assert {(cell["dataset"], cell["cell"]) for cell in values["cells"]} == {
        *(("studio", name) for name in ("mae-vit", "pf-vit", "no-separator", "no-separator-blind")),
        *(("street", name) for name in ("mae-vit", "pf-vit")),
    }
    assert all(len(cell["accuracy"]) == 2 for cell in values["cells"])
    assert not values["missing"]
    page = Page((output / "tables/tables.html").read_text())
    captions = " ".join(page.words)
    for wanted in (
        "What holds of the paper",
        "The separator",
        "Across datasets",
        "What is left where: studio",
        "Costs",
    ):
        assert wanted in captions
    cross = json.loads((output / "measured/cross.json").read_text())
    assert {(each["trained"], each["tested"]) for each in cross} == {("studio", "street"), ("street", "studio")}
    assert (output / "studio/report/report.html").exists()
    assert (output / "studio/pictures/attention.png").exists()

    before = (output / "tables/tables.html").stat().st_mtime_ns
    again = subprocess.run(call, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "finished already" in again.stderr
    assert (output / "tables/tables.html").stat().st_mtime_ns == before
