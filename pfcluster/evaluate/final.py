"""What a run is worth: scores on a split, and at the end the test split, the poker faces and the pictures."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfcluster.checkpoint import store
from pfcluster.config import RunConfig
from pfcluster.data import transforms
from pfcluster.data.batch import patch_order
from pfcluster.data.dataset import SyntheticSplit
from pfcluster.data.types import Dataset, Split
from pfcluster.distributed.process_group import World
from pfcluster.evaluate import poker_faces, predictions
from pfcluster.evaluate.classification import chunks, confusion, load_images, predict, scores
from pfcluster.evaluate.evaluators import Evaluators
from pfcluster.evaluate.image_grid import pick, write_grid
from pfcluster.evaluate.token_probes import probe_run
from pfcluster.evaluate.tracked_faces import view_columns
from pfcluster.models.losses import mae as mae_loss
from pfcluster.models.mae import MAE, hidden_patches, paint
from pfcluster.models.pf_vit import PFViT, shown_count

PICTURES = 8


def _autocast(config: RunConfig, world: World) -> AbstractContextManager[Any]:
    return torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=config.engine.precision != "fp32")


def classify_with(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """b 3 h w -> logits b k, of any of our classifiers."""
    return model.classify if isinstance(model, PFViT) else model


def evaluate_split(
    config: RunConfig, model: nn.Module, split: Split, classes: tuple[str, ...], world: World
) -> tuple[dict[str, float], float]:
    """Scores on a split, and the one that chooses checkpoints (higher is better; for MAE the loss's negative)."""
    model.eval()
    with _autocast(config, world):
        if isinstance(model, MAE):
            loss = _mae_loss(config, model, split, world)
            values, score = {"loss": loss}, -loss
        else:
            found = scores(confusion(*_predict(config, model, split, classes, world)), classes)
            values = {name: found[name] for name in ("accuracy", "mean_class_accuracy", "macro_f1")}
            score = values[config.evaluate.metric]
    model.train()
    return values, score


def _predict(
    config: RunConfig, model: nn.Module, split: Split, classes: tuple[str, ...], world: World
) -> tuple[Tensor, Tensor]:
    return predict(
        classify_with(model),
        split,
        size=config.data.size,
        batch_size=config.evaluate.batch_size,
        classes=len(classes),
        world=world,
    )


def _test_scores(
    config: RunConfig, folder: Path, model: nn.Module, test: Split, classes: tuple[str, ...], world: World
) -> dict[str, Any]:
    """Scores on the test split, and the answers that they count in `predictions.safetensors`."""
    logits, labels = _predict(config, model, test, classes, world)
    if world.is_main:
        samples = predictions.checksum(test.keys(torch.arange(len(test))))
        answers = predictions.Predictions(logits.numpy(), labels.numpy(), classes, samples)
        predictions.write(folder, answers)
    return scores(confusion(logits, labels), classes)


@torch.inference_mode()
def _by_mask_ratio(
    config: RunConfig, model: PFViT, split: Split, classes: tuple[str, ...], world: World
) -> list[dict[str, float]]:
    """Accuracy at each of `evaluate.mask_ratios`, each sample under a mask of its own."""
    orders = patch_order(config, len(split), "test-mask", 0)
    found = []
    for ratio in config.evaluate.mask_ratios:
        kept = shown_count(orders.shape[1], ratio)
        hits = torch.zeros(2, dtype=torch.float64)
        for indices in chunks(len(split), config.evaluate.batch_size, world):
            images, labels = load_images(split, indices, config.data.size, world.device)
            answers = model.classify(images, orders[indices, :kept].to(world.device)).argmax(1)
            hits += torch.tensor([(answers == labels).sum().item(), len(labels)], dtype=torch.float64)
        right, count = world.sum(hits).tolist()
        found.append({"mask_ratio": ratio, "accuracy": right / count, "n": int(count)})
    return found


@torch.inference_mode()
def _mae_loss(config: RunConfig, model: MAE, split: Split, world: World) -> float:
    """Mean loss over a split, each sample under a mask of its own that is the same at every evaluation."""
    orders = patch_order(config, len(split), "validation-mask", 0)
    sums = torch.zeros(2, dtype=torch.float64)
    for indices in chunks(len(split), config.evaluate.batch_size, world):
        images, _ = load_images(split, indices, config.data.size, world.device)
        order = orders[indices].to(world.device)
        target = hidden_patches(images, order, model.kept, config.model.patch)
        loss = mae_loss(model(images, order), target, norm_pixels=config.mae.norm_pixels)
        sums += torch.tensor([loss.item() * len(indices), len(indices)], dtype=torch.float64)
    total, count = world.sum(sums).tolist()
    return total / count


def final_evaluation(
    config: RunConfig,
    folder: Path,
    dataset: Dataset,
    model: nn.Module,
    evaluators: Evaluators,
    world: World,
) -> dict[str, Any]:
    """Everything measured once, with the weights of the checkpoint that validation chose. Touches the test split where
    there is one and `evaluate.final_split` says so.
    """
    model.load_state_dict(store.load(folder).weights())
    model.to(world.device).eval()
    test = dataset.test if config.evaluate.final_split == "test" else None
    split = dataset.validation if test is None else test
    values, _ = evaluate_split(config, model, dataset.validation, dataset.classes, world)
    result: dict[str, Any] = {"validation": values, "pictures": {}, "poker": None, "reconstruction": None}
    result["measured_on"] = config.evaluate.final_split
    model.eval()
    with _autocast(config, world):
        if isinstance(model, MAE):
            if test is not None:
                result["test"] = {"n": len(test), "loss": _mae_loss(config, model, test, world)}
            result["pictures"]["mae"] = _mae_picture(config, folder, split, model, world)
            return result
        if test is not None:
            result["test"] = _test_scores(config, folder, model, test, dataset.classes, world)
        result["probes"] = probe_run(config, dataset, split, model, world)
        if isinstance(model, PFViT):
            result["by_mask_ratio"] = _by_mask_ratio(config, model, split, dataset.classes, world)
            found = poker_faces.measure(
                model,
                split,
                size=config.data.size,
                count=config.evaluate.n_poker_faces,
                batch_size=config.evaluate.batch_size,
                evaluators=evaluators,
                world=world,
            )
            result["reconstruction"] = {"mse": found.pop("mse")}
            result["poker"] = found
            result["pictures"]["views"] = _views_picture(config, folder, split, model, world)
    return result


@torch.inference_mode()
def _views_picture(config: RunConfig, folder: Path, split: Split, model: PFViT, world: World) -> str:
    """Original, reconstruction, emotion, poker face and, where it is known, the truth."""
    chosen = pick(split.labels(), len(split.classes), PICTURES)
    images, labels = load_images(split, chosen, config.data.size, world.device)
    truth = transforms.to_float(split.poker_faces(chosen)) if isinstance(split, SyntheticSplit) else None
    return _write(folder, "views", view_columns(model, images, truth), _names(split, labels), world)


@torch.inference_mode()
def _mae_picture(config: RunConfig, folder: Path, split: Split, model: MAE, world: World) -> str:
    """Original, what the encoder saw, and the guess in place of what was hidden."""
    chosen = pick(split.labels(), len(split.classes), PICTURES)
    images, labels = load_images(split, chosen, config.data.size, world.device)
    order = patch_order(config, len(chosen), "picture-mask", 0).to(world.device)
    patch, kept = config.model.patch, model.kept
    prediction = model(images, order).float()
    grey = torch.zeros_like(prediction)
    columns = {
        "original": images,
        "visible": paint(images, grey, order, kept, patch, norm_pixels=False),
        "guess": paint(images, prediction, order, kept, patch, norm_pixels=config.mae.norm_pixels),
    }
    return _write(folder, "mae", columns, _names(split, labels), world)


def _names(split: Split, labels: Tensor) -> list[str]:
    """Captions; faces without labels have none."""
    return [split.classes[label] if split.classes else "" for label in labels.tolist()]


def _write(folder: Path, name: str, columns: dict[str, Tensor], rows: list[str], world: World) -> str:
    place = f"pictures/{name}.png"
    if world.is_main:
        write_grid(folder / place, columns, rows)
    return place
