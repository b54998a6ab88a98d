"""The inputs of a prediction: photos, folders, patterns, videos and webcams, and the frames in them. No torch.

Legend: h rows, w columns.
"""

from __future__ import annotations

import glob
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pfcluster.data.build.left_out import skipped_names
from pfcluster.data.build.stored_images import DecodedPhoto, decode
from pfcluster.data.jpeg import UnreadablePhotoError
from pfcluster.data.raw.base import IMAGE_SUFFIXES, MAX_FILE_BYTES, skipped_as
from pfcluster.inference.errors import InferenceError
from pfcluster.inference.video import VIDEO_SUFFIXES, VideoReader
from pfcluster.system.os_errors import describe
from pfcluster.system.walk import walk_through_links

READ_AHEAD = 32
"""Photos that are decoded before they are needed."""
MAX_DECODERS = 4
"""Threads that decode photos."""


@dataclass(frozen=True)
class Source:
    """One photo, video or webcam."""

    name: str
    kind: Literal["photo", "video", "webcam"]

    @property
    def is_stream(self) -> bool:
        """Whether it has many frames."""
        return self.kind != "photo"


@dataclass(frozen=True, eq=False)
class Frame:
    """A decoded photo or frame; `photo` is None for one that cannot be read, and for the end of a video."""

    source: int
    """Index in the list of sources."""
    number: int | None
    """Number in a video; None for a photo."""
    time_ms: float | None
    photo: DecodedPhoto | None
    reason: str | None = None
    """Why it cannot be read, or why a video ended early."""
    is_last: bool = False
    """Whether no frame of this source follows."""
    rate: float | None = None
    """Frames of the video per second, after leaving out those between every n-th."""


@dataclass(frozen=True)
class Inputs:
    """What is predicted, and where it was looked for."""

    sources: tuple[Source, ...]
    folders: tuple[Path, ...] = ()
    """Folders that were searched."""
    patterns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """For each folder and pattern, what was skipped in it."""


def list_inputs(inputs: Sequence[str]) -> Inputs:
    """All photos and videos that the inputs name, each path once, as it is spelled first. Raises InferenceError for an
    input that names none.

    An input is a file, a folder (searched recursively, hidden names skipped), a pattern such as `photos/**/*.jpg`, or
    the number of a webcam.
    """
    sources: dict[str, Source] = {}
    folders: list[Path] = []
    patterns: list[str] = []
    notes: list[str] = []
    for text in inputs:
        path, note = Path(text), ""
        if path.is_dir():
            folders.append(path)
            named, note = _folder(path)
        elif path.exists():
            named = [_file(text)]
        elif text.isdecimal():
            named = [Source(f"webcam {int(text)}", "webcam")]
        else:
            patterns.append(text)
            named, note = _pattern(text)
        for source in named:
            sources.setdefault(_place(source), source)
        notes += [f"{text}: {note}"] if note else []
    return Inputs(tuple(sources.values()), tuple(folders), tuple(patterns), tuple(notes))


def _place(source: Source) -> str:
    """The same for all spellings of a path: `a.jpg`, `./a.jpg`, `folder/../a.jpg`, and from the root. Links count as
    files of their own.
    """
    if source.kind == "webcam":
        return source.name
    folder, name = os.path.split(source.name)
    folder = os.path.realpath(folder) if os.pardir in folder.split(os.sep) else os.path.abspath(folder)
    return os.path.join(folder, name)


def split_pattern(pattern: str) -> tuple[Path, tuple[str, ...]]:
    """The folder that a pattern searches, and its parts below that."""
    parts = Path(pattern).parts
    fixed = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:fixed]), parts[fixed:]


def _pattern(text: str) -> tuple[list[Source], str]:
    """The sources that a pattern matches, and a sentence on skipped files and folders."""
    if not glob.has_magic(text):
        raise InferenceError(f"{text} does not exist; pass a photo, a folder, a pattern, a video or a webcam's number")
    matches = sorted(glob.glob(text, recursive=True))
    folders = [] if "**" in text else [match for match in matches if os.path.isdir(match)]
    matches = [match for match in matches if os.path.isfile(match) or not os.path.exists(match)]  # or a broken link
    note = _skipped(split_pattern(text)[0], [match for match in matches if not is_listed(match)])
    if folders:
        unsearched = (
            f"matching folders are not searched ({len(folders)}, such as {folders[0]}): use {text.rstrip('/')}/**"
        )
        note = f"{note}; {unsearched}" if note else unsearched
    files = [match for match in matches if is_listed(match)]
    if not files:
        raise InferenceError(f"no photo and no video matches {text}{note and f': {note}'}")
    return [_file(match) for match in files], note


def _skipped(root: Path, names: Sequence[str]) -> str:
    """A sentence on files below a folder that are skipped; "" if there are none."""
    counts = Counter(skipped_as(PurePosixPath(os.path.relpath(name, root))) for name in names)
    return skipped_names(counts, "photos or videos")


def _file(name: str) -> Source:
    return Source(name, "video" if Path(name).suffix.lower() in VIDEO_SUFFIXES else "photo")


def is_listed(name: str) -> bool:
    """Whether a file in a folder, or that a pattern matches, is taken for a photo or video."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES


def _folder(root: Path) -> tuple[list[Source], str]:
    """The sources in a folder, and a sentence on skipped files."""
    names: list[str] = []
    others: list[str] = []

    def fail(error: OSError) -> None:
        raise InferenceError(f"a folder cannot be listed: {describe(error)}") from error

    for folder, below, files in walk_through_links(root, fail):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(files):
            (names if is_listed(name) and not name.startswith(".") else others).append(str(folder / name))
    note = _skipped(root, others)
    if not names:
        raise InferenceError(
            f"{root} holds no photo and no video, at any depth; photos end in .jpg, .png, ...{note and f' ({note})'}"
        )
    return [_file(name) for name in names], note


def read_photo(name: str) -> DecodedPhoto:
    """Read and decode a photo. Raises UnreadablePhotoError."""
    try:
        size = os.stat(name).st_size
        if size == 0:
            raise UnreadablePhotoError("the file is empty")
        if size > MAX_FILE_BYTES:
            raise UnreadablePhotoError(f"the file has {size:,} bytes, more than {MAX_FILE_BYTES:,}")
        return decode(Path(name).read_bytes())
    except OSError as error:
        raise UnreadablePhotoError(error.strerror or str(error)) from error


@dataclass(frozen=True)
class ReadOptions:
    """Which frames of videos are read."""

    frame_step: int = 1
    """Every n-th frame is used."""
    max_frames: int | None = None
    """The frames of a source from this number on are not read."""


def read_frames(sources: Sequence[tuple[int, Source]], options: ReadOptions, first_frame: int = 0) -> Iterator[Frame]:
    """Frames of the sources, with their indices, in order; photos are decoded ahead by threads. `first_frame`: number
    of the first frame to be read of the first source.

    Files that cannot be read are frames with a reason. Raises InferenceError for a webcam that cannot be opened.
    """
    with ThreadPoolExecutor(min(MAX_DECODERS, os.cpu_count() or 1)) as pool:
        ahead: deque[tuple[int, Source, Future[Frame] | None]] = deque()
        remaining = iter(sources)
        try:
            while True:
                while len(ahead) < READ_AHEAD and (item := next(remaining, None)):
                    index, source = item
                    ahead.append((index, source, None if source.is_stream else pool.submit(_photo, index, source)))
                if not ahead:
                    return
                index, source, future = ahead.popleft()
                if future is None:
                    yield from _stream(index, source, options, first_frame)
                else:
                    yield future.result()
                first_frame = 0
        finally:
            for _, _, future in ahead:
                if future is not None:
                    future.cancel()


def _photo(index: int, source: Source) -> Frame:
    try:
        return Frame(index, None, None, read_photo(source.name), is_last=True)
    except UnreadablePhotoError as error:
        return Frame(index, None, None, None, str(error), is_last=True)


def _stream(index: int, source: Source, options: ReadOptions, first_frame: int) -> Iterator[Frame]:
    """Frames of a video or webcam, and one without image at the end."""
    try:
        with VideoReader(source.name, is_webcam=source.kind == "webcam") as video:
            rate = video.rate / options.frame_step
            for number, time_ms, image in video.frames(first_frame, options.frame_step, options.max_frames):
                yield Frame(index, number, time_ms, DecodedPhoto(b"", image, plain=False), rate=rate)
            reason = video.cut_off()
    except UnreadablePhotoError as error:
        reason = str(error)
    yield Frame(index, None, None, None, reason, is_last=True)
