"""`pfcluster reproduce --miniature` from an empty folder to its tables, on the command line."""

from __future__ import annotations

import json
import shlex

import pytest

from tests.commands import command
from tests.studies import Page

pytestmark = pytest.mark.slow

TINY = shlex.split(
    "--data.size 32 --data.synthetic.train 96 --data.synthetic.validation 24 --data.synthetic.test 40"
    " --data.synthetic.identities 12 --epochs 1 --batch-size 16 --pf-mag.warmup-steps 2 --pf-mag.loss-balancing-steps 2"
    " --evaluate.n-poker-faces 16 --engine.device cpu"
)


def test_miniature_writes_tables_and_a_second_run_changes_nothing(tmp_path):
    output = tmp_path / "paper"
    words = ["reproduce", "--miniature", "--executor", "local", "--seeds", "1", "--tables", "separator"]
    words += ["--output", str(output), *TINY]
    first = command(*words)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    values = json.loads((output / "tables/tables.json").read_text())
    assert {(cell["dataset"], cell["cell"]) for cell in values["cells"]} == {
        *(("studio", name) for name in ("mae-vit", "pf-vit", "no-separator", "no-separator-real-fake")),
        *(("street", name) for name in ("mae-vit", "pf-vit")),
    }
    assert all(len(cell["accuracy"]) == 1 for cell in values["cells"])
    assert not values["missing"]
    page = Page((output / "tables/tables.html").read_text())
    text = " ".join(page.words)
    for caption in (
        "Claims of the paper",
        "Separator, and emotion outputs of the discriminator: studio",
        "Cross-dataset accuracy",
        "Linear probes: studio",
        "Costs",
    ):
        assert caption in text
    cross = json.loads((output / "measured/cross.json").read_text())
    assert {(row["trained"], row["tested"]) for row in cross} == {("studio", "street"), ("street", "studio")}
    assert (output / "studio/report/report.html").exists()
    assert (output / "studio/pictures/attention.png").exists()

    before = (output / "tables/tables.html").stat().st_mtime_ns
    second = command(*words)
    assert second.returncode == 0, second.stderr[-2000:]
    assert "finished already" in second.stderr
    assert (output / "tables/tables.html").stat().st_mtime_ns == before
