"""A trained model in Python: `pfcluster.load` returns one.

Legend: n faces, k classes, d features, s side of a stored image, z side of the network's input.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pfcluster.inference.crops import Cropper, DetectedFaces, WhichFaces, WholePhotos
from pfcluster.inference.errors import InferenceError, NoGeneratorError
from pfcluster.inference.faces import Face, Faces
from pfcluster.inference.images import Images, photos_of
from pfcluster.inference.model_info import ModelInfo
from pfcluster.inference.predictor import softmax

if TYPE_CHECKING:
    from pfcluster.inference.torch_predictor import TorchPredictor

WINDOW = 16
"""Images that are decoded and detected together."""


class Model:
    """A trained model with the preprocessing of its training data.

    All functions take one image or several: paths, pillow images, NumPy arrays (uint8 h w 3 or b h w 3, RGB), torch
    tensors (uint8 3 h w or b 3 h w). With `detect` they find faces, "all" or "one" per image (the one that training
    would use); without, every image is a crop of a face. Results are in the order of images, and in an image of faces:
    first the one that training would use, then by size. An image without a face has no result. All functions raise
    InferenceError for an image that cannot be read.
    """

    def __init__(self, predictor: TorchPredictor) -> None:
        self.predictor: TorchPredictor = predictor
        self._detectors: dict[WhichFaces, Cropper] = {}

    def __repr__(self) -> str:
        return f"<pfcluster model {self.info.name}: {self.info.network.kind}, {', '.join(self.classes)}>"

    @property
    def info(self) -> ModelInfo:
        """Sizes, classes, preprocessing, figures: the content of config.json."""
        return self.predictor.info

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the outputs."""
        return self.info.classes

    def predict(self, images: Images, *, detect: bool = True, faces: WhichFaces = "all", batch_size: int = 32) -> Faces:
        """The faces of the images with labels and probabilities; `.to_frame()` makes a pandas table of them."""
        result: list[Face] = []
        for batch, crops in self._batches(images, detect, faces, batch_size):
            for face, probabilities in zip(batch, softmax(self.predictor.logits(crops)), strict=True):
                face.classify(self.classes, probabilities)
                result.append(face)
        return Faces(result, self.classes)

    def poker_face(
        self, images: Images, *, detect: bool = True, faces: WhichFaces = "all", batch_size: int = 32
    ) -> NDArray[np.uint8]:
        """The same faces without expression: uint8 n z z 3, RGB. They are synthetic images: mark them as such.

        Raises NoGeneratorError if the model classifies only.
        """
        if not self.info.generates:
            raise NoGeneratorError(self.info.name)
        size = self.info.network.size
        parts = [self.predictor.poker_faces(crops) for _, crops in self._batches(images, detect, faces, batch_size)]
        return np.concatenate([np.zeros((0, size, size, 3), np.uint8), *parts])

    def features(
        self, images: Images, *, detect: bool = True, faces: WhichFaces = "all", batch_size: int = 32
    ) -> NDArray[np.float32]:
        """The input of the classifier's last layer: float32 n d. Of PF-ViT the class token of its emotion tokens."""
        parts = [self.predictor.features(crops) for _, crops in self._batches(images, detect, faces, batch_size)]
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    def save(self, output: str | Path) -> None:
        """Write the model as a folder, or as one file if the name ends in .safetensors. Raises InferenceError."""
        from pfcluster.inference.model_folder import with_precision, write_model

        write_model(Path(output), *with_precision(self.info, self.predictor.net.state_dict(), "float32"))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model to the Hugging Face hub as `user/name`; -> the address of the commit. `options` are those of
        huggingface_hub's `ModelHubMixin.push_to_hub`, such as `private` and `token`. Raises InferenceError.
        """
        from pfcluster.inference.load import hub_module

        return str(hub_module().push(self.info, self.predictor.net, repo_id, **options))

    def _batches(
        self, images: Images, detect: bool, which: WhichFaces, batch_size: int
    ) -> Iterator[tuple[list[Face], NDArray[np.uint8]]]:
        """Batches of faces and their stored images, b s s 3."""
        if batch_size < 1:
            raise InferenceError(f"batch_size must be at least 1, got {batch_size}")
        found = self._faces(images, self._cropper(detect, which))
        while batch := list(islice(found, batch_size)):
            yield batch, np.stack([face.crop for face in batch if face.crop is not None])

    def _faces(self, images: Images, cropper: Cropper) -> Iterator[Face]:
        photos = photos_of(images)
        while window := list(islice(photos, WINDOW)):
            for (name, _), faces in zip(window, cropper.faces([photo for _, photo in window]), strict=True):
                for face in faces:
                    face.source = name
                yield from (face for face in faces if face.crop is not None)

    def _cropper(self, detect: bool, which: WhichFaces) -> Cropper:
        if not detect:
            return WholePhotos(self.info.preprocessing)
        if which not in ("all", "one"):
            raise InferenceError(f'faces must be "all" or "one", got {which!r}')
        if which not in self._detectors:
            device = str(self.predictor.device)
            self._detectors[which] = DetectedFaces(self.info.preprocessing, device, which)
        return self._detectors[which]
