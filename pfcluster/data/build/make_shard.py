"""One shard of a plan: its photos read, checked, cut to faces and written. Runs alone in any process."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pfcluster.data.build.align import AlignedFace, Aligner, Hint, Rejected, resize
from pfcluster.data.build.plan import BuildError, LeftOut, PlannedPhoto, PlannedShard
from pfcluster.data.build.shard_writer import Sample, write_sealed, write_shard
from pfcluster.data.jpeg import UnreadablePhotoError, decode_jpeg, decode_photo, encode_jpeg
from pfcluster.data.labels import CANONICAL
from pfcluster.data.manifest import BUILD_FOLDER, ShardFile
from pfcluster.data.raw.base import RawDataset, RawPhoto, read_bytes

WINDOW_PHOTOS = 64
WINDOW_PIXELS = 64_000_000
"""Photos are held in memory until one of the two is reached; within a window equal sizes share a batch."""


@dataclass(frozen=True)
class ShardResult:
    """What became of one planned shard: the content of its marker in the build folder."""

    file: ShardFile
    per_class: dict[str, int]
    identities: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> ShardResult:
        left_out = tuple(LeftOut(*photo) for photo in values["left_out"])
        return ShardResult(ShardFile(**values["file"]), values["per_class"], tuple(values["identities"]), left_out)


def marker_path(folder: Path, shard: str) -> Path:
    """The file that says that a shard is finished."""
    return folder / BUILD_FOLDER / f"{shard}.done.json"


@dataclass(frozen=True)
class ShardMaker:
    """Everything that shards of one build share."""

    folder: Path
    dataset: str
    datasets: Mapping[str, RawDataset]
    """Role -> listed photos."""
    size: int
    quality: int
    aligner: Aligner | None
    """None takes photos as they are."""

    def make(self, shard: PlannedShard, advance: Callable[[int], None]) -> None:
        """Write the shard's tar, index and marker. `advance` is told photos done. Raises BuildError, OSError."""
        left_out: list[LeftOut] = []
        samples: list[Sample] = []

        def collect() -> Iterator[Sample]:
            for window in self._windows(shard, left_out, advance):
                for sample in self._samples(shard.split, window, left_out):
                    samples.append(dataclasses.replace(sample, jpeg=b""))
                    yield sample

        file = write_shard(self.folder, shard.name, collect())
        per_class: dict[str, int] = {}
        for label in filter(None, (sample.record["label"] for sample in samples)):
            per_class[label] = per_class.get(label, 0) + 1
        identities = tuple(sorted({sample.record["identity"] for sample in samples}))
        result = ShardResult(file, per_class, identities, tuple(left_out))
        write_sealed(marker_path(self.folder, shard.name), dataclasses.asdict(result))

    def _raw(self, photo: PlannedPhoto) -> RawPhoto:
        return self.datasets[photo.role].photos[photo.number]

    def _windows(
        self, shard: PlannedShard, left_out: list[LeftOut], advance: Callable[[int], None]
    ) -> Iterator[list[_Opened]]:
        """The shard's photos, decoded, a few at a time and in order; what does not decode goes to `left_out`."""
        window: list[_Opened] = []
        taken = pixels = 0
        for number, photo in enumerate(shard.photos, 1):
            data = self._read(photo)
            taken += 1
            try:
                image, plain = decode_photo(data)
                window.append(_Opened(photo, data, image, plain))
                pixels += image.shape[0] * image.shape[1]
            except UnreadablePhotoError as error:
                left_out.append(LeftOut(photo.role, photo.number, "unreadable", str(error)))
            if taken == WINDOW_PHOTOS or pixels >= WINDOW_PIXELS or number == len(shard.photos):
                yield window
                advance(taken)
                window, taken, pixels = [], 0, 0

    def _read(self, photo: PlannedPhoto) -> bytes:
        """The photo's file, the same that was planned. Raises BuildError where it is not."""
        raw = self._raw(photo)
        try:
            data = read_bytes(raw)
        except OSError as error:
            raise BuildError(f"{raw.source} could be read when the build was planned, now not: {error}") from error
        if hashlib.sha256(data).hexdigest() != photo.sha256:
            raise BuildError(f"{raw.source} has changed since the build was planned; delete the output and start again")
        return data

    def _samples(self, split: str, window: Sequence[_Opened], left_out: list[LeftOut]) -> Iterator[Sample]:
        images = [opened.image for opened in window]
        raw = [self._raw(opened.photo) for opened in window]
        hints = [Hint(photo.box, photo.landmarks) for photo in raw]
        faces = self.aligner.align(images, hints) if self.aligner else [None] * len(window)
        for opened, face in zip(window, faces, strict=True):
            photo = opened.photo
            if isinstance(face, Rejected):
                left_out.append(LeftOut(photo.role, photo.number, face.reason, face.detail))
                continue
            jpeg = encode_jpeg(face.image, self.quality) if face else self._as_it_is(opened)
            yield Sample(photo.key, jpeg, self._record(split, opened, face))

    def _as_it_is(self, opened: _Opened) -> bytes:
        """The photo at the crop's size; a JPEG that has it already keeps its very bytes."""
        if opened.plain and opened.image.shape[:2] == (self.size, self.size):
            try:
                decode_jpeg(opened.data)
            except ValueError:  # pillow is more forgiving than the reader: write it anew
                pass
            else:
                return opened.data
        return encode_jpeg(resize(opened.image, self.size), self.quality)

    def _record(self, split: str, opened: _Opened, face: AlignedFace | None) -> dict[str, Any]:
        """The sample's JSON. Box and landmarks are in pixels of the upright photo."""
        photo, (height, width) = opened.photo, opened.image.shape[:2]
        record: dict[str, Any] = {
            "dataset": self.dataset,
            "split": split,
            "label": photo.label,
            "identity": photo.identity,
            "identity_known": self._raw(photo).identity is not None,
            "source": self._raw(photo).source,
            "photo_size": [width, height],
            "box": [0, 0, width, height],
            "landmarks": None,
        }
        votes = self._raw(photo).votes
        if votes:
            record["votes"] = {name: round(share, 6) for name, share in zip(CANONICAL, votes, strict=True) if share}
        if face:
            record["box"] = [round(value, 2) for value in face.face.box]
            record["landmarks"] = [[round(value, 2) for value in point] for point in face.face.landmarks.tolist()]
            record |= {"faces_found": face.found, "probability": round(face.face.probability, 4)}
        return record


@dataclass(frozen=True)
class _Opened:
    photo: PlannedPhoto
    data: bytes
    image: np.ndarray
    """uint8 h w 3, RGB."""
    plain: bool
