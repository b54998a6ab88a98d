"""Read videos and webcams, and write videos, with OpenCV. Legend: h rows, w columns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pfcluster.data.jpeg import UnreadablePhotoError
from pfcluster.inference.errors import InferenceError

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".ogv")
)
CODEC = "mp4v"
"""MPEG-4 part 2, which OpenCV's packages from PyPI can write."""
DEFAULT_RATE = 25.0
"""Frames per second of a video that does not say."""
MIN_COMPLETE = 0.98
"""A video with fewer readable frames than this share of the number in its header is reported as cut."""


class VideoReader:
    """The frames of a video file or webcam, upright, in RGB. A context manager."""

    def __init__(self, name: str, *, is_webcam: bool = False) -> None:
        """`name`: a file, or `webcam N`. Raises UnreadablePhotoError for a file, InferenceError for a webcam."""
        import cv2

        self.name = name
        self._is_webcam = is_webcam
        self._read = 0
        if is_webcam:
            self._capture: Any = cv2.VideoCapture(int(name.split()[-1]))
        else:
            _require_content(name)
            file: Any = os.fsencode(name)  # given a str that is not UTF-8, OpenCV crashes
            self._capture = cv2.VideoCapture(file)
        if not self._capture.isOpened():
            self._capture.release()
            if is_webcam:
                raise InferenceError(f"{name} cannot be opened: no such camera, or another program uses it")
            raise UnreadablePhotoError("it is not a video that OpenCV can read")
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.rate = rate if np.isfinite(rate) and 0 < rate <= 1000 else DEFAULT_RATE
        """Frames per second."""
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if not is_webcam and np.isfinite(count) and count > 0 else None
        """Frames that the file says it has; None if it does not."""

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._capture.release()

    def frames(self, first: int, step: int, stop: int | None) -> Iterator[tuple[int, float, np.ndarray]]:
        """Number, time in milliseconds and pixels (uint8 h w 3) of every `step`-th frame from `first`, which must be a
        multiple of `step`, up to `stop`.

        Frames before `first` are decoded and dropped: seeking is inexact in many formats.
        """
        import cv2

        while stop is None or self._read < stop:
            if not self._capture.grab():
                return
            number = self._read
            self._read += 1
            if number < first or number % step:
                continue
            time_ms = float(self._capture.get(cv2.CAP_PROP_POS_MSEC))
            if not np.isfinite(time_ms) or time_ms < 0 or (time_ms == 0 and number > 0):
                time_ms = 1000 * number / self.rate
            complete, image = self._capture.retrieve()
            if not complete:
                return
            yield number, round(time_ms, 3), _rgb(image)

    def cut_off(self) -> str | None:
        """After the last frame: why the video seems incomplete; None if it does not."""
        if self._read == 0:
            return "no frame of the video can be decoded"
        if self.count is not None and self._read < MIN_COMPLETE * self.count and not self._capture.grab():
            return f"ends after frame {self._read - 1} of {self.count}: the file is cut or damaged"
        return None


def _require_content(name: str) -> None:
    """Raises UnreadablePhotoError for a file that is empty, missing or cannot be opened; OpenCV would not say why."""
    try:
        if os.stat(name).st_size == 0:
            raise UnreadablePhotoError("the file is empty")
        with open(name, "rb"):
            pass
    except OSError as error:
        raise UnreadablePhotoError(error.strerror or str(error)) from error


def _rgb(image: np.ndarray) -> np.ndarray:
    """BGR of OpenCV, or greyscale, to RGB."""
    import cv2

    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB)


class VideoWriter:
    """Writes an MP4 file frame by frame; complete after `close`."""

    def __init__(self, path: Path, rate: float, width: int, height: int) -> None:
        """Raises InferenceError if the file cannot be written."""
        import cv2

        self._size = (width, height)
        file: Any = os.fsencode(path)  # as in VideoReader
        self._writer = cv2.VideoWriter(file, cv2.VideoWriter.fourcc(*CODEC), rate, self._size)
        if not self._writer.isOpened():
            raise InferenceError(f"OpenCV cannot write {path}: check that the folder exists and that it ends in .mp4")

    def write(self, image: np.ndarray) -> None:
        """Append a frame, uint8 h w 3, RGB."""
        import cv2

        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size)
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Complete the file."""
        self._writer.release()
