"""Scores of a model on a split; after training also the test split, the poker faces, the probes and the image grids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfcluster.checkpoint import store
from pfcluster.config import RunConfig
from pfcluster.data import transforms
from pfcluster.data.batch import patch_order
from pfcluster.data.splits import SyntheticSplit, sample_ids
from pfcluster.data.types import Dataset, Split
from pfcluster.distributed.process_group import World
from pfcluster.engine.precision import autocast
from pfcluster.evaluate import poker_faces, predictions
from pfcluster.evaluate.classification import (
    confusion_matrix,
    load_images,
    predict_run,
    rank_batches,
    scores,
)
from pfcluster.evaluate.evaluators import Evaluators
from pfcluster.evaluate.image_grid import pick_round_robin, write_grid
from pfcluster.evaluate.token_probes import probe_run
from pfcluster.evaluate.tracked_faces import view_columns
from pfcluster.models.losses import mae as mae_loss
from pfcluster.models.mae import MAE, hidden_patches, inpaint
from pfcluster.models.pf_vit import PFViT, visible_count
from pfcluster.runs.folder import PICTURES_DIR
from pfcluster.runs.progress import warn

N_GRID_ROWS = 8
N_TRANSFER_FACES = 4


def evaluate_split(
    config: RunConfig, model: nn.Module, split: Split, classes: tuple[str, ...], world: World
) -> tuple[dict[str, float], float]:
    """Metrics on a split, and the score that selects checkpoints (higher is better; for MAE the negative loss)."""
    model.eval()
    with autocast(world.device, config.engine.precision):
        if isinstance(model, MAE):
            loss = _mae_loss(config, model, split, world)
            values, score = {"loss": loss}, -loss
        else:
            logits, labels = predict_run(config, model, split, len(classes), world)
            all_scores = scores(confusion_matrix(logits, labels), classes)
            values = {name: all_scores[name] for name in ("accuracy", "mean_class_accuracy", "macro_f1")}
            score = values[config.evaluate.metric]
    model.train()
    return values, score


def final_evaluation(
    config: RunConfig, folder: Path, dataset: Dataset, model: nn.Module, evaluators: Evaluators, world: World
) -> dict[str, Any]:
    """Evaluate the best checkpoint, or the newest intact one if it is damaged: the content of result.json.

    Poker faces, probes and grids use the test split if there is one and `evaluate.final_split` is "test", else the
    validation split. Writes predictions.safetensors and the grids on rank 0.
    """
    checkpoint = store.load(folder, lambda problem: warn(folder, problem, world.is_main))
    model.load_state_dict(checkpoint.weights())
    model.to(world.device).eval()
    test = dataset.test if config.evaluate.final_split == "test" else None
    split = dataset.validation if test is None else test
    values, _ = evaluate_split(config, model, dataset.validation, dataset.classes, world)
    result: dict[str, Any] = {"validation": values, "pictures": {}, "poker": None, "reconstruction": None}
    result["evaluated_step"] = checkpoint.step
    result["measured_on"] = config.evaluate.final_split
    model.eval()
    with autocast(world.device, config.engine.precision):
        if isinstance(model, MAE):
            if test is not None:
                result["test"] = {"n": len(test), "loss": _mae_loss(config, model, test, world)}
            result["pictures"]["mae"] = _mae_grid(config, folder, split, model, world)
            return result
        if test is not None:
            result["test"] = _test_scores(config, folder, model, test, dataset.classes, world)
        result["probes"] = probe_run(config, dataset, split, model, world)
        if isinstance(model, PFViT):
            result["by_mask_ratio"] = _by_mask_ratio(config, model, split, world)
            figures = poker_faces.measure(config, model, split, evaluators, world)
            result["reconstruction"] = {"mse": figures.pop("mse")}
            result["poker"] = figures
            result["pictures"]["views"] = _views_grid(config, folder, split, model, world)
            if model.separator is not None and split.classes:
                result["pictures"]["transfer"] = _transfer_grid(config, folder, split, model, world)
    return result


def _test_scores(
    config: RunConfig, folder: Path, model: nn.Module, test: Split, classes: tuple[str, ...], world: World
) -> dict[str, Any]:
    """Scores on the test split; writes the logits to predictions.safetensors."""
    logits, labels = predict_run(config, model, test, len(classes), world)
    if world.is_main:
        samples = predictions.checksum(sample_ids(test))
        predictions.write(folder, predictions.Predictions(logits.numpy(), labels.numpy(), classes, samples))
    return scores(confusion_matrix(logits, labels), classes)


@torch.inference_mode()
def _by_mask_ratio(config: RunConfig, model: PFViT, split: Split, world: World) -> list[dict[str, float]]:
    """Accuracy at each of `evaluate.mask_ratios`, with a random mask per sample."""
    orders = patch_order(config, slice(0, len(split)), "test-mask", 0)
    rows = []
    for ratio in config.evaluate.mask_ratios:
        visible = visible_count(orders.shape[1], ratio)
        hits = torch.zeros(2, dtype=torch.float64)
        for indices in rank_batches(len(split), config.evaluate.batch_size, world):
            images, labels = load_images(split, indices, config.data.size, world.device)
            predicted = model.classify(images, orders[indices, :visible].to(world.device)).argmax(1)
            hits += torch.tensor([(predicted == labels).sum().item(), len(labels)], dtype=torch.float64)
        correct, count = world.sum(hits).tolist()
        rows.append({"mask_ratio": ratio, "accuracy": correct / count, "n": int(count)})
    return rows


@torch.inference_mode()
def _mae_loss(config: RunConfig, model: MAE, split: Split, world: World) -> float:
    """Mean loss over a split, with a random mask per sample that is the same at every evaluation."""
    orders = patch_order(config, slice(0, len(split)), "validation-mask", 0)
    sums = torch.zeros(2, dtype=torch.float64)
    for indices in rank_batches(len(split), config.evaluate.batch_size, world):
        images, _ = load_images(split, indices, config.data.size, world.device)
        order = orders[indices].to(world.device)
        target = hidden_patches(images, order, model.kept, config.model.patch)
        loss = mae_loss(model(images, order), target, norm_pixels=config.mae.norm_pixels)
        sums += torch.tensor([loss.item() * len(indices), len(indices)], dtype=torch.float64)
    total, count = world.sum(sums).tolist()
    return total / count


@torch.inference_mode()
def _views_grid(config: RunConfig, folder: Path, split: Split, model: PFViT, world: World) -> str:
    """Write a grid of photo, reconstruction, emotion view, poker face and, for a synthetic split, the true one."""
    indices = pick_round_robin(split.labels(), len(split.classes), N_GRID_ROWS)
    images, labels = load_images(split, indices, config.data.size, world.device)
    truth = transforms.to_float(split.poker_faces(indices)) if isinstance(split, SyntheticSplit) else None
    return _write_grid(folder, "views", view_columns(model, images, truth), _row_names(split, labels), world)


@torch.inference_mode()
def _transfer_grid(config: RunConfig, folder: Path, split: Split, model: PFViT, world: World) -> str:
    """Write a grid of expression transfer: a row for each face, a column for each class of the split, whose emotion
    tokens come from the photo in the first row.
    """
    all_labels = split.labels()
    classes = len(all_labels[all_labels >= 0].unique())
    indices = pick_round_robin(all_labels, len(split.classes), classes + N_TRANSFER_FACES)
    images, labels = load_images(split, indices, config.data.size, world.device)
    sources, faces = images[:classes], images[-N_TRANSFER_FACES:]
    columns = {"face": torch.cat([torch.ones_like(faces[:1]), faces])}
    for source, label in zip(sources, labels[: len(sources)].tolist(), strict=True):
        swapped = model.transfer(source.expand_as(faces), faces).float()
        columns[f"with {split.classes[label]}"] = torch.cat([source[None], swapped])
    rows = ["emotion of", *_row_names(split, labels[-N_TRANSFER_FACES:])]
    return _write_grid(folder, "transfer", columns, rows, world)


@torch.inference_mode()
def _mae_grid(config: RunConfig, folder: Path, split: Split, model: MAE, world: World) -> str:
    """Write a grid of photo, visible patches, and the photo with its hidden patches predicted."""
    indices = pick_round_robin(split.labels(), len(split.classes), N_GRID_ROWS)
    images, labels = load_images(split, indices, config.data.size, world.device)
    order = patch_order(config, slice(0, len(indices)), "picture-mask", 0).to(world.device)
    patch, kept = config.model.patch, model.kept
    prediction = model(images, order).float()
    grey = torch.zeros_like(prediction)
    columns = {
        "original": images,
        "visible": inpaint(images, grey, order, kept, patch, norm_pixels=False),
        "prediction": inpaint(images, prediction, order, kept, patch, norm_pixels=config.mae.norm_pixels),
    }
    return _write_grid(folder, "mae", columns, _row_names(split, labels), world)


def _row_names(split: Split, labels: Tensor) -> list[str]:
    """Class names; empty for an unlabelled split."""
    return [split.classes[label] if split.classes else "" for label in labels.tolist()]


def _write_grid(folder: Path, name: str, columns: dict[str, Tensor], rows: list[str], world: World) -> str:
    """Write a grid on rank 0; its path within the run folder, on all ranks."""
    path = f"{PICTURES_DIR}/{name}.png"
    if world.is_main:
        write_grid(folder / path, columns, rows)
    return path
