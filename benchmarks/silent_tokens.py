"""What keeps the emotion out of the identity tokens f_p, and what it costs, at the demo's length.

    python -m benchmarks.silent_tokens [--seeds 1 2 3]    train missing runs, write docs/results/silent_tokens.{json,md}

Compares the recipe without erasure and swap cycle with an emotion adversary on f_p (`pf_mag.weights.confusion`), and
with the erasure (`pf_mag.erasure_start`), on other faces than the search's. Besides the linear probe of pooled
tokens, a linear probe reads all tokens, and a small net predicts the emotion from either: what is linearly silent may
still be there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import recipe_variants
from benchmarks.poker_aims import RECIPE, read_figures
from pfcluster.checkpoint import store
from pfcluster.config import RunConfig, presets
from pfcluster.data.dataset import open_dataset
from pfcluster.data.types import Split
from pfcluster.distributed.process_group import World, generator
from pfcluster.evaluate.classification import load_images
from pfcluster.evaluate.linear_probe import pool_tokens, probe_accuracy
from pfcluster.launch.plan import Plan
from pfcluster.models import factory
from pfcluster.models.pf_vit import PFViT
from pfcluster.runs.folder import read_config

COMMAND = "python -m benchmarks.silent_tokens"
NAME = "silent_tokens"
FACES = 2
"""`data.synthetic.seed` of faces that neither the search nor the other benchmarks use."""
PROBED = 2000
UNERASED = {"pf_mag.erasure_start": None, "pf_mag.weights.swap": 0.0}
"""The swap cycle needs the transfer of expressions that the erasure makes possible."""
EVALUATION = {"evaluate.n_probe_images": PROBED, "evaluate.n_probe_identities": 200, "evaluate.n_poker_faces": 1000}
SINGLE = World(0, 1, torch.device("cpu"))
FIGURES: recipe_variants.Columns = {
    "emotion from f_p, linear": ("f_p_emotion_probe", None, -1),
    "by a net": ("f_p_emotion_net", None, -1),
    "from all tokens, linear": ("f_p_emotion_all", None, -1),
    "from all tokens, by a net": ("f_p_emotion_net_all", None, -1),
    "identity from f_p": ("f_p_identity_probe", None, 1),
    "identity from pixels": ("poker_identity_probe", None, 1),
    "accuracy": ("accuracy", None, 1),
    "judged neutral": ("poker_neutralised_rate", None, 1),
    "reconstructions recognised": ("rec_emotion_agreement", None, 1),
    "error in the region": ("poker_mse_inside", "input_mse_inside", -1),
    "error outside": ("poker_mse_outside", "rec_mse_outside", -1),
}


def variants() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name of the runs -> title of the row, and config values."""
    recipe = presets.recipe("demo")["pf-vit"].pf_mag
    anchor, swap = recipe.weights.anchor, recipe.weights.swap
    return {
        "adversary-0.3": ("emotion adversary, weight 0.3", {"pf_mag.weights.confusion": 0.3}),
        "adversary-3": (
            "emotion adversary, weight 3, two updates a step",
            {"pf_mag.weights.confusion": 3.0, "pf_mag.discriminator_updates": 2},
        ),
        "erasure": ("erasure", {"pf_mag.erasure_start": 50}),
        "erasure-anchor": (
            f"erasure, anchor {2 * anchor:g} instead of {anchor:g}",
            {"pf_mag.erasure_start": 50, "pf_mag.weights.anchor": 2 * anchor},
        ),
        "erasure-swap": ("erasure and swap cycle", {"pf_mag.erasure_start": 50, "pf_mag.weights.swap": swap}),
    }


def plan(folder: Path, seeds: Sequence[int]) -> Plan:
    """The runs: the recipe and its variants."""
    values = {name: values for name, (_, values) in variants().items()}
    return recipe_variants.variants_plan(
        NAME, folder, seeds, values, faces=FACES, command=COMMAND, common={**UNERASED, **EVALUATION}
    )


def token_probes(run: Path) -> dict[str, float]:
    """Test accuracies of probes of the emotion from f_p of a run, trained and tested on the images of the run's own
    linear probe: a net on pooled tokens, and both a linear probe and a net on all tokens.
    """
    config = read_config(run)
    dataset = open_dataset(config.data, config.seed)
    assert dataset.test is not None
    model = factory.build(config, len(dataset.classes), load_init=False)["model"].eval()
    assert isinstance(model, PFViT)
    model.load_state_dict(store.load(run).weights())
    train = torch.randperm(len(dataset.train), generator=generator(config.seed, "probe"))[:PROBED]
    test = torch.arange(min(PROBED, len(dataset.test)))
    seen, unseen = (
        identity_tokens(config, dataset.train, train, model),
        identity_tokens(config, dataset.test, test, model),
    )
    labels, truth = dataset.train.labels()[train], dataset.test.labels()[test]
    linear = probe_accuracy(seen.flatten(1), labels, unseen.flatten(1), truth)
    assert linear is not None
    return {
        "f_p_emotion_net": net_probe(pool_tokens(seen), labels, pool_tokens(unseen), truth),
        "f_p_emotion_all": linear,
        "f_p_emotion_net_all": net_probe(seen.flatten(1), labels, unseen.flatten(1), truth),
    }


@torch.inference_mode()
def identity_tokens(config: RunConfig, split: Split, indices: Tensor, model: PFViT) -> Tensor:
    """f_p of images, n t d."""
    tokens = []
    for rows in indices.split(config.evaluate.batch_size):
        face = model.separate(load_images(split, rows, config.data.size, SINGLE.device)[0])[2]
        assert face is not None
        tokens.append(face)
    return torch.cat(tokens)


def net_probe(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> float:
    """Test accuracy of a net with 128 hidden units on standardised features: n f, n, m f, m."""
    from sklearn.neural_network import MLPClassifier

    mean, std = train.mean(0), train.std(0).clamp(min=1e-6)
    probe = MLPClassifier((128,), alpha=1e-3, early_stopping=True, max_iter=200, random_state=0)
    probe.fit(((train - mean) / std).numpy(), labels.numpy())
    return float(probe.score(((test - mean) / std).numpy(), truth.numpy()))


def figures(folder: Path, name: str, seeds: Sequence[int]) -> dict[str, dict[int, float]]:
    """Figures of a row's runs by seed."""
    by_figure = read_figures(folder, name, seeds)
    for seed in seeds:
        for figure, value in token_probes(folder / name / f"seed-{seed}").items():
            by_figure.setdefault(figure, {})[seed] = value
    return by_figure


def results(folder: Path, seeds: Sequence[int], commit: str | None) -> dict[str, Any]:
    """Content of silent_tokens.json. `commit` is recorded where the runs do not know theirs."""
    of_recipe = figures(folder, RECIPE, seeds)
    rows = {title: name for name, (title, _) in variants().items()}
    by_title = {title: figures(folder, name, seeds) for title, name in rows.items()}
    return {
        **recipe_variants.provenance(folder, seeds, COMMAND, commit, rows),
        "chance": next(iter(of_recipe["emotion_chance"].values())),
        **recipe_variants.compared(of_recipe, by_title, FIGURES),
    }


def markdown(values: Mapping[str, Any]) -> str:
    """silent_tokens.md from the content of silent_tokens.json."""
    lines = [
        "# The emotion in the identity tokens",
        "",
        f"{recipe_variants.measured_line(values)} Bold: differs from the "
        "recipe, p < 0.05 (Holm's correction over the table). Reproduce, at these commits, with",
        "",
        f"    {values['command']}",
        "",
        *recipe_variants.table(values, FIGURES, first="PF-ViT", recipe="the recipe without erasure"),
        "",
        f"Emotion and identity: accuracy of probes of the class token and the mean of the patch tokens; chance is "
        f"{values['chance']:.3f} for the emotion. From all tokens: of all tokens side by side, {PROBED:,} training "
        "images. By a net: one hidden layer of 128 units. Errors as in [the recipe's parts](recipe_parts.md).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(recipe_variants.train_and_write(__doc__, NAME, plan, results, markdown))
