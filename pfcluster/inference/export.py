"""From a finished run to a model: config, evaluated weights, and how its photos were prepared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfcluster.checkpoint import store
from pfcluster.config import ConfigError, RunConfig
from pfcluster.config.json_files import JsonFileError
from pfcluster.data.build.align import NO_HINT
from pfcluster.data.build.detect import FaceAligner
from pfcluster.data.dataset import open_dataset
from pfcluster.data.fingerprints import require_same_data
from pfcluster.data.manifest import Manifest, ShardError, load_manifest
from pfcluster.data.types import DataError
from pfcluster.evaluate.evaluate_run import require_outputs
from pfcluster.inference.errors import InferenceError
from pfcluster.inference.grey import is_grey
from pfcluster.inference.load import is_run, load
from pfcluster.inference.model_folder import require_free, with_precision, write_model
from pfcluster.inference.model_info import (
    CARD_FILE,
    WEIGHTS_FILE,
    ModelInfo,
    Point,
    Preprocessing,
    Training,
    build_template,
)
from pfcluster.inference.run_figures import run_figures
from pfcluster.inference.torch_predictor import network_info, weights_sha256
from pfcluster.models.erasure import inference_weights
from pfcluster.runs.folder import RESULT_FILE, enclosing_run, read_config, read_result
from pfcluster.runs.run_inputs import read_inputs, recorded_classes

GREY_IMAGES = 256
"""Training images whose channels are compared."""
TEMPLATE_IMAGES = 32
"""Images of unaligned training data in which faces are detected for the template."""
MIN_TEMPLATE_FACES = 8
DETECTION_SIDE = 160
"""They are enlarged to this side for the detector, in pixels."""
OWN_DATA_LICENSE = "apache-2.0"


@dataclasses.dataclass(frozen=True)
class RunModel:
    """A run as a model."""

    info: ModelInfo
    weights: dict[str, Tensor]
    """The weights that are evaluated: the moving average if the run keeps one."""


def export_run(
    run: Path,
    output: Path,
    *,
    precision: str = "float32",
    discriminator: bool = False,
    shards: str | None = None,
    license: str | None = None,
) -> ModelInfo:
    """Write the best checkpoint of a run, or a model (see `read_source`), as a model folder or file.

    `shards`: where the run's shards are now; `license`: of the weights; `discriminator`: write Δ, too. Raises
    InferenceError, CheckpointError, OSError.
    """
    require_free(output)
    model = read_source(run, shards, license)
    group = None
    if discriminator and not is_model(run):
        group = store.load(run).tensors("discriminator").get("discriminator")
    if discriminator and group is None:
        raise InferenceError(
            f"--discriminator: {run} has none, because it is not a run of pf-mag; leave the option out"
        )
    info, weights = with_precision(model.info, model.weights, precision)
    write_model(output, info, weights, group)
    return info


def is_model(source: Path) -> bool:
    """Whether `pfcluster.load` reads it as a model rather than a run: a folder or file of an export, a name on the hub,
    builtin:NAME.
    """
    if not source.is_dir():
        return True
    return not is_run(source) and any((source / name).exists() for name in (WEIGHTS_FILE, CARD_FILE))


def read_source(source: Path, shards: str | None = None, license: str | None = None) -> RunModel:
    """A run, or a model that `pfcluster.load` takes, in float32. Raises InferenceError, CheckpointError."""
    if not is_model(source):
        return read_run(source, shards, license)
    if shards is not None:
        raise InferenceError(f"--shards is for runs; the model {source} already records how its photos were cropped")
    model = load(str(source), device="cpu")
    info, weights = with_precision(model.info, model.predictor.net.state_dict(), "float32")
    return RunModel(dataclasses.replace(info, license=license or info.license), weights)


def read_run(run: Path, shards: str | None = None, license: str | None = None) -> RunModel:
    """The best checkpoint of a run, or a checkpoint folder, as a model; with figures if it is the checkpoint that the
    run evaluated. Raises InferenceError, CheckpointError.
    """
    checkpoint = store.load(run)
    folder = enclosing_run(run) or run
    config = read_config(folder)
    _require_classifier(run, config)
    weights = inference_weights(checkpoint.weights())
    result = _result(folder)
    classes = recorded_classes(folder)
    if classes is None:
        raise InferenceError(
            f"{folder} does not record its classes; train the run again with this version of pfcluster"
        )
    require_outputs(folder, weights, classes)
    training = _training(config, result, checkpoint.step)
    measured = run_figures(folder, result, classes, checkpoint.step)
    info = ModelInfo(
        name=f"{config.name}-{training.dataset}",
        network=network_info(config),
        classes=classes,
        preprocessing=_preprocessing(folder, config, shards),
        training=training,
        figures=measured.figures,
        no_figures=measured.no_figures,
        over_seeds=measured.over_seeds,
        poker_faces=measured.poker_faces,
        license=license or (OWN_DATA_LICENSE if config.data.shards is None else "other"),
        weights_sha256=weights_sha256(weights),
        version=version("pfcluster"),
    )
    return RunModel(info, weights)


def _require_classifier(run: Path, config: RunConfig) -> None:
    if config.objective == "mae":
        raise InferenceError(
            f"{run} is a run of MAE pre-training: it has no classes and its decoder predicts hidden patches only;"
            " export a run of finetune or pf-mag that starts from it (`pfcluster finetune --model.init RUN`)"
        )
    if config.data.target == "identity":
        raise InferenceError(
            f"{run} recognises the identities of its training data, not expressions; export a run of judge, finetune or"
            " pf-mag without --data.target identity"
        )


def _result(folder: Path) -> dict[str, Any]:
    try:
        return read_result(folder) or {}
    except JsonFileError as error:
        raise InferenceError(f"{error}; restore {RESULT_FILE}, or train the run again") from error


def _training(config: RunConfig, result: Mapping[str, Any], step: int) -> Training:
    dataset = result.get("dataset") or {}
    samples = {name: dataset[name] for name in ("train", "validation", "test") if isinstance(dataset.get(name), int)}
    name = dataset.get("name") or ("synthetic" if config.data.shards is None else Path(config.data.shards).name)
    return Training(
        dataset=name,
        votes=dataset.get("votes"),
        samples=samples,
        objective=config.objective,
        seed=config.seed,
        step=step,
        commit=result.get("git_commit"),
    )


def _preprocessing(folder: Path, config: RunConfig, shards: str | None) -> Preprocessing:
    """How the run's stored images were made. Raises InferenceError if their manifest cannot be read, or is of other
    data than those that the run was trained on.
    """
    if config.data.shards is None:
        template, faces = measured_template(config)
        return Preprocessing(
            align="none", crop_size=config.data.size, template=template, template_faces=faces, jpeg_quality=None
        )
    place = shards or config.data.shards
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, shards=place))
    try:
        manifest = load_manifest(place)
        require_same_data(folder, read_inputs(folder), config)
    except ConfigError as error:
        raise InferenceError(
            f"{error}. A model crops photos as the run's shards did; if these have moved, name their folder: pfcluster"
            " export RUN --shards FOLDER"
        ) from error
    except (ShardError, OSError) as error:
        raise InferenceError(
            f"the manifest of the run's shards, which records how photos are cropped, cannot be read: {error}; if they"
            " have moved, name their folder with --shards"
        ) from error
    options = _build_options(manifest)
    template, faces = build_template(), None
    if options["align"] == "none":
        template, faces = measured_template(config)
    return Preprocessing(
        align=options["align"],
        crop_size=manifest.size,
        template=template,
        template_faces=faces,
        jpeg_quality=options["quality"],
        grey=trained_on_grey(config),
        face=options["face"],
    )


def trained_on_grey(config: RunConfig) -> bool:
    """Whether a run's training images are all grey, by a sample of them. Raises InferenceError if they cannot be
    read.
    """
    if config.data.shards is None:
        return False
    try:
        split = open_dataset(config.data, config.seed).train
        indices = torch.linspace(0, len(split) - 1, min(GREY_IMAGES, len(split))).long()
        return is_grey(split.batch(indices).images.permute(0, 2, 3, 1).numpy())
    except (DataError, ShardError, OSError) as error:
        raise InferenceError(f"the run's training images, which may be grey, cannot be read: {error}") from error


def _build_options(manifest: Manifest) -> dict[str, Any]:
    defaults = {"align": "mtcnn", "quality": 95, "face": "largest-central"}
    return {name: manifest.options.get(name, value) for name, value in defaults.items()}


def measured_template(config: RunConfig) -> tuple[tuple[Point, ...], int | None]:
    """Mean position of the five landmarks in training data that is not aligned, made symmetric, and the number of faces
    averaged; the template of `pfcluster build` and None if too few are detected.
    """
    try:
        split = open_dataset(config.data, config.seed).validation
    except (DataError, ShardError, OSError) as error:
        raise InferenceError(f"the run's data, in which faces are located, cannot be read: {error}") from error
    indices = torch.linspace(0, len(split) - 1, min(TEMPLATE_IMAGES, len(split))).long()
    images = split.batch(indices).images.permute(0, 2, 3, 1).numpy()
    landmarks = template_landmarks(images, FaceAligner(DETECTION_SIDE))
    if len(landmarks) < MIN_TEMPLATE_FACES:
        return build_template(), None
    mirrored = landmarks[:, [1, 0, 2, 4, 3]] * (-1, 1) + (1, 0)
    mean = np.concatenate([landmarks, mirrored]).mean(0).round(4)
    return tuple((x, y) for x, y in mean.tolist()), len(landmarks)


def template_landmarks(images: np.ndarray, aligner: FaceAligner) -> np.ndarray:
    """Landmarks of the largest face of each image in which one is found, as fractions of its side from its edge:
    uint8 n h h 3 -> f 5 2. The centre of pixel x lies at (x + 1/2) / h.
    """
    import cv2

    enlarged = [cv2.resize(image, (DETECTION_SIDE,) * 2, interpolation=cv2.INTER_CUBIC) for image in images]
    faces = aligner.detect_selected(enlarged, [NO_HINT] * len(enlarged))
    points = [max(each, key=lambda face: face.box[2] - face.box[0]).landmarks for each in faces if each]
    return (np.array(points).reshape(-1, 5, 2) + 0.5) / DETECTION_SIDE
