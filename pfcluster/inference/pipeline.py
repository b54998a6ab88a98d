"""Photos and videos to classified faces: a thread reads and detects ahead while the network computes, in batches over
photos and faces, with a bounded number of images in memory. No torch.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pfcluster.inference.crops import NO_FACE, Cropper
from pfcluster.inference.faces import Face
from pfcluster.inference.predictor import Predictor, softmax
from pfcluster.inference.sources import Frame, ReadOptions, Source, read_frames
from pfcluster.inference.tracking import FaceTracker

WINDOW_FRAMES = 32
WINDOW_PIXELS = 48_000_000
"""Photos that are detected together, and their pixels at most."""
WINDOWS_AHEAD = 1
"""Windows that wait for the network."""


@dataclass(frozen=True)
class Position:
    """Where a prediction stands: everything before it is done."""

    source: int = 0
    frame: int = 0
    """The next frame of that source."""
    tracker: dict[str, Any] | None = None
    """State of that source's tracker."""


@dataclass(eq=False)
class FrameFaces:
    """A photo or frame with its faces."""

    frame: Frame
    faces: list[Face]
    image: np.ndarray | None
    """uint8 h w 3, if images are kept."""
    after: Position
    """What to continue with after this frame."""
    is_readable: bool
    """Whether there was an image."""
    poker_faces: dict[int, np.ndarray] = field(default_factory=dict)
    """Number of a face -> its poker face, uint8 z z 3."""


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """How photos are read and batched."""

    batch_size: int = 32
    """Faces per batch of the network."""
    read: ReadOptions = field(default_factory=ReadOptions)
    keep_images: bool = False
    """Keep the photos, to draw on them."""
    poker_faces: bool = False
    """Generate poker faces, too."""


def run_pipeline(
    sources: Sequence[Source],
    cropper: Cropper,
    predictor: Predictor,
    options: PipelineOptions,
    start: Position = Position(),
) -> Iterator[FrameFaces]:
    """Photos and frames with classified faces, in the order of the sources. A source that cannot be read, or has no
    face, gives one face without label, with the reason.
    """
    windows = _ahead(_detected(sources, cropper, options, start))
    return _classified(windows, sources, predictor, options)


def _detected(
    sources: Sequence[Source], cropper: Cropper, options: PipelineOptions, start: Position
) -> Iterator[list[FrameFaces]]:
    """Windows of frames with their detected faces."""
    trackers = _Trackers(start)
    remaining = list(enumerate(sources))[start.source :]
    window: list[Frame] = []
    pixels = 0
    for frame in read_frames(remaining, options.read, start.frame):
        window.append(frame)
        pixels += 0 if frame.photo is None else frame.photo.image.shape[0] * frame.photo.image.shape[1]
        live = sources[frame.source].kind == "webcam"
        if live or len(window) == WINDOW_FRAMES or pixels >= WINDOW_PIXELS:
            yield _detect_window(window, sources, cropper, trackers, options)
            window, pixels = [], 0
    if window:
        yield _detect_window(window, sources, cropper, trackers, options)


def _detect_window(
    window: Sequence[Frame],
    sources: Sequence[Source],
    cropper: Cropper,
    trackers: _Trackers,
    options: PipelineOptions,
) -> list[FrameFaces]:
    faces = iter(cropper.faces([frame.photo for frame in window if frame.photo is not None]))
    results = []
    for frame in window:
        found = [] if frame.photo is None else next(faces)
        source = sources[frame.source]
        after = trackers.update(frame, found) if source.is_stream else Position(frame.source + 1)
        found = found or _reasons(frame, source, trackers)
        for face in found:
            face.source, face.frame, face.time_ms = source.name, frame.number, frame.time_ms
        keep = options.keep_images and frame.photo is not None
        image = frame.photo.image if keep and frame.photo is not None else None
        slim = Frame(frame.source, frame.number, frame.time_ms, None, frame.reason, frame.is_last, frame.rate)
        results.append(FrameFaces(slim, found, image, after, frame.photo is not None))
    return results


def _reasons(frame: Frame, source: Source, trackers: _Trackers) -> list[Face]:
    """A face without label for a photo or video that cannot be read or has no face; none for a frame without one."""
    if frame.reason is not None:
        return [Face("", reason=frame.reason)]
    if not source.is_stream or (frame.is_last and trackers.count == 0):
        return [Face("", reason=NO_FACE)]
    return []


class _Trackers:
    """The tracker of the current video; numbers the tracks of its faces."""

    def __init__(self, start: Position) -> None:
        state = start.tracker
        self._tracker = FaceTracker() if state is None else FaceTracker.restored(state)
        self._source = start.source

    @property
    def count(self) -> int:
        """Number of tracks of the video so far."""
        return int(self._tracker.state()["next"])

    def update(self, frame: Frame, faces: Sequence[Face]) -> Position:
        """Set the tracks of a frame's faces; -> what follows the frame."""
        if frame.source != self._source:
            self._tracker, self._source = FaceTracker(), frame.source
        if frame.number is None:
            return Position(frame.source + 1)
        whole = (0.0, 0.0, 1.0, 1.0)  # of crops
        for face, track in zip(faces, self._tracker.update([face.box or whole for face in faces]), strict=True):
            face.track = track
        return Position(frame.source, frame.number + 1, self._tracker.state())


def _ahead(windows: Iterable[list[FrameFaces]]) -> Iterator[list[FrameFaces]]:
    """The windows, computed by a thread of its own; its errors are raised here."""
    waiting: queue.Queue[list[FrameFaces] | BaseException | None] = queue.Queue(WINDOWS_AHEAD)
    stop = threading.Event()

    def put(item: list[FrameFaces] | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for window in windows:
                if not put(window):
                    return
            put(None)
        except BaseException as error:  # whatever it is, the consumer must not wait for ever
            put(error)

    thread = threading.Thread(target=produce, name="read-and-detect", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def _classified(
    windows: Iterator[list[FrameFaces]], sources: Sequence[Source], predictor: Predictor, options: PipelineOptions
) -> Iterator[FrameFaces]:
    """Frames whose faces all have labels, in order."""
    frames: deque[FrameFaces] = deque()
    faces: deque[tuple[FrameFaces, Face]] = deque()
    try:
        for window in windows:
            frames.extend(window)
            faces.extend((frame, face) for frame in window for face in frame.faces if face.crop is not None)
            live = any(sources[frame.frame.source].kind == "webcam" for frame in window)
            while len(faces) >= options.batch_size or (live and faces):
                _classify([faces.popleft() for _ in range(min(options.batch_size, len(faces)))], predictor, options)
                yield from _complete(frames)
            yield from _complete(frames)
        while faces:
            _classify([faces.popleft() for _ in range(min(options.batch_size, len(faces)))], predictor, options)
            yield from _complete(frames)
        yield from frames
    finally:
        windows.close()  # type: ignore[attr-defined]


def _complete(frames: deque[FrameFaces]) -> Iterator[FrameFaces]:
    """Remove the first frames whose faces all have a label or a reason."""
    while frames and all(face.label or face.reason for face in frames[0].faces):
        yield frames.popleft()


def _classify(batch: Sequence[tuple[FrameFaces, Face]], predictor: Predictor, options: PipelineOptions) -> None:
    """Set label and probabilities of faces, or the reason why they have none."""
    classes = predictor.info.classes
    crops = np.stack([face.crop for _, face in batch if face.crop is not None])
    for (_, face), probabilities in zip(batch, softmax(predictor.logits(crops)), strict=True):
        face.classify(classes, probabilities)
    if options.poker_faces:
        for (frame, face), image in zip(batch, predictor.poker_faces(crops), strict=True):
            frame.poker_faces[face.number or 0] = image
