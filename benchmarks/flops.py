"""Parameters, FLOPs and saved activations of one training step, counted by torch on the meta device.

    python -m benchmarks.flops [--output benchmarks/results/flops.md]

FLOPs: 2 per multiply-add, forward + backward, for one image of 224 px (torch.utils.flop_counter). Saved: bytes that
autograd saves for backward, fp32, one image. "Plain" is the straightforward step with the same nets and losses
(tests/reference/plain_steps.py; tests/unit/test_steps.py tests that the gradients are equal). φ is facenet-pytorch's
InceptionResnetV1.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from facenet_pytorch import InceptionResnetV1

from pfcluster.config import LossWeights, RunConfig, presets
from pfcluster.models import factory
from pfcluster.models.identity_net import FaceNet
from pfcluster.models.mae import MAE
from pfcluster.profiling.flops import SAMPLE, count_step, empty_batches, profile
from pfcluster.training.pf_mag_terms import loss_settings
from tests.reference.plain_steps import plain_mae_loss, plain_pf_mag_step

CLASSES = 8
PAPER = {"PF-ViT-B at test time (E, S, C)": "89.7 M", "PF-MAG-B in training": "145.1 M"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=None, help="Markdown file to write")
    options = parser.parse_args()
    text = f"{parameters()}\n{costs()}"
    print(text)
    if options.output:
        head = (
            "# Parameters, FLOPs, saved activations\n\n`python -m benchmarks.flops --output"
            f" benchmarks/results/flops.md`, torch {torch.__version__}, any machine. {CLASSES} classes, 224 px.\n\n"
        )
        options.output.write_text(head + text)


def parameters() -> str:
    """Parameter counts, compared with the paper's."""
    recipe = presets.recipe("vit-b")
    pf_mag, mae = profile(recipe["pf-vit"], CLASSES), profile(recipe["mae"], CLASSES)
    rows = {
        "MAE-B in pre-training": mae.train_parameters,
        "MAE-ViT-B at test time": profile(recipe["mae-vit"], CLASSES).test_parameters,
        "PF-ViT-B at test time (E, S, C)": pf_mag.test_parameters,
        "PF-MAG-B in training": pf_mag.train_parameters,
    }
    lines = ["| model | here | paper |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {number / 1e6:.1f} M | {PAPER.get(name, '–')} |" for name, number in rows.items()]
    return "\n".join(lines) + "\n"


def costs() -> str:
    """FLOPs and saved bytes of our step and the plain one, for the three encoder sizes."""
    columns = ("step", "GFLOP", "plain", "plain / ours", "saved MiB", "plain", "ours / plain")
    lines = ["| " + " | ".join(columns) + " |", "| --- " + "| ---: " * (len(columns) - 1) + "|"]
    with torch.device("meta"):
        identity_net = FaceNet(InceptionResnetV1(pretrained=None))
    for size in ("t", "s", "b"):
        recipe = presets.recipe(f"vit-{size}")
        without_phi = replace(recipe["pf-vit"], pf_mag=replace(recipe["pf-vit"].pf_mag, identity_net="tokens"))
        for label, config, phi in (
            (f"MAE-{size.upper()}, 75 % masked", recipe["mae"], None),
            (f"PF-MAG-{size.upper()} with φ", recipe["pf-vit"], identity_net),
            (f"PF-MAG-{size.upper()} without φ", without_phi, None),
        ):
            ours = profile(config, CLASSES, identity_net=phi)
            flops, saved = plain(config, phi)
            cells = (
                f"{ours.flops / 1e9:.1f}",
                f"{flops / 1e9:.1f}",
                f"{flops / ours.flops:.2f}",
                f"{ours.saved_bytes / 2**20:.0f}",
                f"{saved / 2**20:.0f}",
                f"{ours.saved_bytes / saved:.2f}",
            )
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plain(config: RunConfig, identity_net: FaceNet | None) -> tuple[float, float]:
    """FLOPs and saved bytes per image of the plain step."""
    with torch.device("meta"):
        modules = factory.build(config, CLASSES, load_init=False)
        (batch,) = empty_batches(config, SAMPLE, 1)
        model = modules["model"]

        def step() -> None:
            if isinstance(model, MAE):
                assert batch.order is not None
                plain_mae_loss(model, batch.images, batch.order).backward()
            else:
                settings = loss_settings(config.pf_mag, 0, None, 0.0, identity_net)
                plain_pf_mag_step(model, modules["discriminator"], batch, settings, LossWeights())  # type: ignore[arg-type]

        flops, saved = count_step(step, modules)
    return flops / SAMPLE, saved / SAMPLE


if __name__ == "__main__":
    main()
