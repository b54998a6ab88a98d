"""All outputs of a model for one face: label, poker face, emotion view, Grad-CAM++; with the time that each takes.

Legend: s side of a stored image, z side of the network's input.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfcluster.data.jpeg import UnreadablePhotoError
from pfcluster.inference.crops import Cropper, DetectedFaces, WholePhotos
from pfcluster.inference.errors import InferenceError
from pfcluster.inference.faces import NOT_FINITE, Face
from pfcluster.inference.model import Model
from pfcluster.inference.predictor import softmax
from pfcluster.inference.sources import read_photo


class NoFaceError(InferenceError):
    """A photo without a face."""


@dataclass(frozen=True, eq=False)
class FaceViews:
    """One face of a photo."""

    probabilities: dict[str, float]
    """Class -> probability, in the order of the model's outputs."""
    crop: NDArray[np.uint8]
    """The stored image: s s 3."""
    attention: NDArray[np.float32] | None
    """Grad-CAM++ map of the most probable class, z z in 0..1; None if the net is not a ViT."""
    poker_face: NDArray[np.uint8] | None
    """z z 3; None if the model classifies only."""
    emotion_view: NDArray[np.uint8] | None
    """What the emotion tokens alone generate, z z 3; None if the model classifies only."""
    milliseconds: dict[str, float]
    """Step -> time that it took."""

    @property
    def label(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])


class FaceViewer:
    """Computes the views of one photo at a time; calls of several threads wait for each other."""

    def __init__(self, model: Model, *, detect: bool = True) -> None:
        """`detect`: find the face that training would use; without, every photo is a crop of a face.

        Raises NoDetectorError.
        """
        preprocessing = model.info.preprocessing
        self.model, self.detect = model, detect
        self._cropper: Cropper = (
            DetectedFaces(preprocessing, str(model.predictor.device), "one") if detect else WholePhotos(preprocessing)
        )
        self._lock = threading.Lock()

    def views(self, photo: str, name: str) -> FaceViews:
        """The views of a photo's face. `name` is the photo's name in errors.

        Raises NoFaceError, InferenceError if the photo cannot be read.
        """
        with self._lock:
            times = _Times()
            crops = self._crop(photo, name)[None]
            times.end("detection" if self.detect else "reading")
            predictor, generates = self.model.predictor, self.model.info.generates
            (probabilities,) = softmax(predictor.logits(crops)).tolist()
            if not all(map(math.isfinite, probabilities)):
                raise InferenceError(f"{name} cannot be classified: {NOT_FINITE}")
            times.end("classification")
            poker_faces = predictor.poker_faces(crops) if generates else None
            if generates:
                times.end("poker face")
            emotion_views = predictor.emotion_views(crops) if generates else None
            if generates:
                times.end("emotion view")
            attention = predictor.attention(crops)
            if attention is not None:
                times.end("Grad-CAM++")
        return FaceViews(
            probabilities=dict(zip(self.model.classes, probabilities, strict=True)),
            crop=crops[0],
            attention=None if attention is None else attention[0],
            poker_face=None if poker_faces is None else poker_faces[0],
            emotion_view=None if emotion_views is None else emotion_views[0],
            milliseconds=times.milliseconds,
        )

    def transfer(self, face: tuple[str, str], expression: tuple[str, str]) -> NDArray[np.uint8]:
        """The face of one photo with the expression of another, each given as path and name: z z 3.

        Raises as `views`, and NoGeneratorError.
        """
        with self._lock:
            crops = [self._crop(*photo)[None] for photo in (expression, face)]
            image: NDArray[np.uint8] = self.model.predictor.transfer(*crops)[0]
            return image

    def _crop(self, photo: str, name: str) -> NDArray[np.uint8]:
        """The stored image of a photo's face: s s 3."""
        try:
            decoded = read_photo(photo)
        except UnreadablePhotoError as error:
            raise InferenceError(f"the file {name} cannot be read: {error}") from error
        faces: list[Face] = self._cropper.faces([decoded])[0]
        if not faces:
            raise NoFaceError(
                f"no face was found in {name}: use a photo in which a face is seen from the front, in good light and"
                " larger than 20 pixels"
            )
        if faces[0].crop is None:
            raise NoFaceError(f"the face in {name} cannot be used: {faces[0].reason}")
        return faces[0].crop


class _Times:
    """Times of steps that follow each other."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self._started = time.perf_counter()

    def end(self, step: str) -> None:
        now = time.perf_counter()
        self.milliseconds[step] = 1000 * (now - self._started)
        self._started = now
