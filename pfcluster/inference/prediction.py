"""`pfcluster predict`: runs the pipeline, writes the table and the pictures, continues after an interrupt. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pfcluster.inference.crops import Cropper
from pfcluster.inference.errors import InferenceError, NoGeneratorError
from pfcluster.inference.faces import Face, Row
from pfcluster.inference.model_info import ModelInfo, to_dict
from pfcluster.inference.outputs import Target, require_apart
from pfcluster.inference.pictures import Annotator, file_stem, is_one_video, make_folder, write_poker_face
from pfcluster.inference.pipeline import FrameFaces, PipelineOptions, Position, run_pipeline
from pfcluster.inference.predictor import Predictor
from pfcluster.inference.sources import Inputs, ReadOptions, Source
from pfcluster.inference.tables import FILES, PartialTable, describe, require_writable


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """What is written, and how photos are read."""

    output: Path | None = None
    """Table; None prints a line for each face."""
    poker_faces: Path | None = None
    """Folder of pictures of originals beside their poker faces."""
    annotate: Path | None = None
    """Folder of annotated photos and videos, or one video."""
    batch_size: int = 32
    read: ReadOptions = field(default_factory=ReadOptions)
    how: dict[str, Any] = field(default_factory=dict)
    """Further options that the rows depend on."""


@dataclass
class Counts:
    """What a prediction has done, in this process."""

    sources: int = 0
    """Finished photos and videos, with those of an earlier attempt."""
    frames: int = 0
    """Photos and frames that could be read."""
    faces: int = 0
    """Faces with a label."""
    without: int = 0
    """Rows without a label."""
    kept_rows: int = 0
    """Rows of an earlier attempt."""
    kept_frames: int = 0
    """Photos and frames that an earlier attempt could read."""


class _Table(Protocol):
    """Where rows go."""

    start: Position

    def append(self, rows: Sequence[Row], after: Position, *, is_readable: bool = True) -> None:
        """Add the rows of a photo or frame. `is_readable`: whether there was an image."""

    def flush(self) -> None:
        """Keep the rows."""

    def finish(self, classes: Sequence[str]) -> None:
        """Complete the table."""

    def close(self) -> None:
        """Close an incomplete table."""


class _Lines:
    """Prints a line for each face."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.start = Position()
        self._show = show

    def append(self, rows: Sequence[Row], after: Position, *, is_readable: bool = True) -> None:
        for row in rows:
            self._show(describe(row))

    def flush(self) -> None:
        """Lines are shown at once."""

    def finish(self, classes: Sequence[str]) -> None:
        """There is nothing to complete."""

    def close(self) -> None:
        """There is nothing to close."""


def check_options(options: PredictionOptions, inputs: Inputs, info: ModelInfo) -> None:
    """Raises InferenceError for outputs that cannot be written, that would replace inputs or become inputs of the next
    prediction, or that the model cannot give, before anything is read.

    Creates the folders of pictures.
    """
    if options.batch_size < 1:
        raise InferenceError(f"--batch-size must be at least 1, got {options.batch_size}")
    if options.read.frame_step < 1:
        raise InferenceError(f"--frame-step must be at least 1, got {options.read.frame_step}")
    if options.read.max_frames is not None and options.read.max_frames < 1:
        raise InferenceError(f"--max-frames must be at least 1, got {options.read.max_frames}")
    if options.output is not None:
        require_writable(options.output)
    require_apart(inputs, _targets(options))
    if options.poker_faces is not None:
        if not info.generates:
            raise NoGeneratorError(info.name)
        make_folder(options.poker_faces, "--poker-face")


def _targets(options: PredictionOptions) -> list[Target]:
    """Where files are written."""
    targets = []
    if options.output is not None:
        targets.append(Target("--output", options.output))
    if options.annotate is not None:
        suffixes = () if is_one_video(options.annotate) else (".jpg", ".mp4")
        targets.append(Target("--annotate", options.annotate, suffixes))
    if options.poker_faces is not None:
        targets.append(Target("--poker-face", options.poker_faces, (".png",)))
    return targets


def run_prediction(
    sources: Sequence[Source],
    predictor: Predictor,
    cropper: Cropper,
    options: PredictionOptions,
    *,
    show: Callable[[str], None],
    advance: Callable[[Counts], None],
) -> Counts:
    """Predict all faces of the sources. `show` prints a line; `advance` is called after each photo or frame.

    Continues an interrupted prediction into the same table. An interrupt ends a webcam's prediction in the regular way.
    Raises InferenceError if an output cannot be written, or no source can be read; OSError; KeyboardInterrupt.
    """
    annotator = None if options.annotate is None else Annotator(options.annotate, sources)  # before there are rows
    table = _open_table(sources, predictor.info, options, show)
    counts = Counts(sources=table.start.source)
    if isinstance(table, PartialTable):
        counts.kept_rows, counts.kept_frames = table.rows, table.frames
    writer = _Writer(sources, predictor.info.classes, table, annotator, options.poker_faces, counts)
    pipeline = PipelineOptions(
        batch_size=options.batch_size,
        read=options.read,
        keep_images=annotator is not None,
        poker_faces=options.poker_faces is not None,
    )
    try:
        for frame in run_pipeline(sources, cropper, predictor, pipeline, table.start):
            writer.write(frame)
            advance(counts)
    except KeyboardInterrupt:
        if sources[min(counts.sources, len(sources) - 1)].kind != "webcam":
            writer.abandon()
            raise
        if annotator is not None:
            annotator.finish_video()
    except BaseException:
        writer.abandon()
        raise
    table.finish(predictor.info.classes)
    if counts.frames == 0 and counts.kept_frames == 0:
        raise InferenceError(f"none of the {len(sources)} inputs can be read; {writer.last_reason or 'see the table'}")
    return counts


def _open_table(
    sources: Sequence[Source], info: ModelInfo, options: PredictionOptions, show: Callable[[str], None]
) -> _Table:
    if options.output is None:
        return _Lines(show)
    config = to_dict(info)
    command = {
        "model": info.weights_sha256,
        **{name: config[name] for name in ("classes", "network", "preprocessing")},
        "inputs": _digest(source.name for source in sources),
        FILES: _digest(_state(source) for source in sources),
        "frame_step": options.read.frame_step,
        "max_frames": options.read.max_frames,
        "poker_faces": None if options.poker_faces is None else str(options.poker_faces),
        "annotate": None if options.annotate is None else str(options.annotate),
        **options.how,
    }
    return PartialTable(options.output, command, whole_sources=options.annotate is not None)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _state(source: Source) -> str:
    """Size and time of a file: as long as they are the same, so is its content."""
    try:
        status = os.stat(source.name)
    except OSError:
        return ""  # a webcam, or a file that is missing
    return f"{status.st_size} {status.st_mtime_ns}"


@dataclass
class _Writer:
    """Writes the rows and pictures of frames."""

    sources: Sequence[Source]
    classes: Sequence[str]
    table: _Table
    annotator: Annotator | None
    poker_faces: Path | None
    counts: Counts
    last_reason: str = ""

    def write(self, frame: FrameFaces) -> None:
        for face in frame.faces:
            self._count(face)
            image = frame.poker_faces.get(face.number or 0) if face.crop is not None else None
            if self.poker_faces is not None and image is not None and face.crop is not None:
                path = self.poker_faces / self._poker_face_name(frame, face)
                write_poker_face(path, face.crop, image, face.label or "")
                face.poker_face = str(path)
        if self.annotator is not None:
            self.annotator.add(frame.frame, frame.image, frame.faces)
        rows = [face.to_row(self.classes) for face in frame.faces]
        self.table.append(rows, frame.after, is_readable=frame.is_readable)
        self.table.flush()
        self.counts.frames += frame.is_readable
        self.counts.sources += frame.frame.is_last

    def _count(self, face: Face) -> None:
        if face.label is None:
            self.counts.without += 1
            self.last_reason = f"{face.source}: {face.reason}"
        else:
            self.counts.faces += 1

    def _poker_face_name(self, frame: FrameFaces, face: Face) -> str:
        stem = file_stem(frame.frame.source, self.sources[frame.frame.source])
        number = "" if face.frame is None else f"_frame{face.frame:07d}"
        return f"{stem}{number}_face{face.number}.png"

    def abandon(self) -> None:
        """Keep the rows so far for another attempt; remove an incomplete video."""
        self.table.close()
        if self.annotator is not None:
            self.annotator.discard_video()
