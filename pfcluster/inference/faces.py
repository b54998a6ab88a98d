"""A face that was found and classified, and its row in a table. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pfcluster.data.build.align import Box
from pfcluster.inference.errors import InferenceError
from pfcluster.system.extras import install_command

POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
"""Order of the landmarks, left and right from the viewer's side."""
PROBABILITY = "p_"
"""Prefix of the column of a class."""
NOT_FINITE = "the network's outputs are not finite numbers"
"""Reason of a face that the network could not classify."""
Value = str | int | float | None
Row = dict[str, Value]


@dataclass(eq=False)
class Face:
    """One face. Pixels count from the upper left corner of the upright photo or frame."""

    source: str
    """Path of the photo or video, `webcam N`, or `image N` for an image in memory."""
    frame: int | None = None
    """Number of the frame in a video or of a webcam, from 0; None for a photo."""
    time_ms: float | None = None
    """Time of the frame since the start of the video, in milliseconds."""
    number: int | None = None
    """Number of the face in its photo or frame, from 0; 0 is the face that training would use."""
    track: int | None = None
    """The same for all frames that show the same face of a video, from 0; None for a photo."""
    box: Box | None = None
    """Left, top, right, bottom in pixels; None for a crop (no detection)."""
    landmarks: np.ndarray | None = None
    """5 2: left eye, right eye, nose, left and right mouth corner (from the viewer's side), (x, y) in pixels."""
    confidence: float | None = None
    """Probability that the detector gives, in 0..1."""
    label: str | None = None
    """The most probable class."""
    probabilities: dict[str, float] = field(default_factory=dict)
    """Class -> probability, in the order of the model's outputs."""
    crop: np.ndarray | None = field(default=None, repr=False)
    """The stored image that the network was given, uint8 s s 3, RGB."""
    poker_face: str | None = None
    """File of the poker face, if `pfcluster predict --poker-face` wrote one."""
    reason: str | None = None
    """Why there is no label: what is wrong with the photo, video or face."""

    def classify(self, classes: Sequence[str], probabilities: np.ndarray) -> None:
        """Set label and probabilities (k, as `classes`); if they are not finite, the reason why there is none."""
        if not np.isfinite(probabilities).all():
            self.reason = NOT_FINITE
            return
        self.label = classes[int(probabilities.argmax())]
        self.probabilities = dict(zip(classes, probabilities.tolist(), strict=True))

    def to_row(self, classes: Sequence[str]) -> Row:
        """Values by column, as `columns` lists them; text as `utf8_text`."""
        box = self.box or (None,) * 4
        points = [None] * 10 if self.landmarks is None else self.landmarks.reshape(-1).tolist()
        values: list[Any] = [self.source, self.frame, self.time_ms, self.number, self.track]
        values += [*(_rounded(value, 2) for value in (*box, *points)), _rounded(self.confidence, 4), self.label]
        values += [_rounded(self.probabilities.get(name), 6) for name in classes]
        return utf8_row(dict(zip(columns(classes), [*values, self.poker_face, self.reason], strict=True)))

    def to_frame(self) -> Any:
        """A pandas DataFrame of one row. Raises InferenceError without pandas."""
        return Faces([self], tuple(self.probabilities)).to_frame()


class Faces(list[Face]):
    """A list of faces that becomes a table."""

    def __init__(self, faces: Sequence[Face] = (), classes: Sequence[str] = ()) -> None:
        super().__init__(faces)
        self.classes = tuple(classes)

    def to_frame(self) -> Any:
        """A pandas DataFrame with the columns of `pfcluster predict`. Raises InferenceError without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise InferenceError(f"to_frame needs pandas: {install_command('pandas')}") from error
        return pandas.DataFrame([face.to_row(self.classes) for face in self], columns=columns(self.classes))


def columns(classes: Sequence[str]) -> list[str]:
    """Columns of a table of faces."""
    names = ["source", "frame", "time_ms", "face", "track", "left", "top", "right", "bottom"]
    names += [f"{point}_{axis}" for point in POINTS for axis in ("x", "y")]
    names += ["confidence", "label", *(f"{PROBABILITY}{name}" for name in classes)]
    return [*names, "poker_face", "reason"]


def utf8_row(row: Row) -> Row:
    """A row with text that every table can hold; see `utf8_text`."""
    return {name: utf8_text(value) if isinstance(value, str) else value for name, value in row.items()}


def utf8_text(text: str) -> str:
    """Text that can be encoded as UTF-8: a byte of a file name that cannot, which Python reads as a lone surrogate,
    becomes its backslash escape, such as `\\udcff` for the byte ff.
    """
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), digits)
