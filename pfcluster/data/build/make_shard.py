"""Makes one shard of a plan: reads its photos, crops faces, writes the tar. Shards are independent of each other."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfcluster.data.build.align import AlignedFace, Aligner, Hint, Rejected, crop_listed_box
from pfcluster.data.build.candidates import LeftOut
from pfcluster.data.build.errors import BuildError
from pfcluster.data.build.plan import PlannedPhoto, PlannedShard
from pfcluster.data.build.shard_writer import Sample, write_checksummed, write_shard
from pfcluster.data.build.stored_images import DecodedPhoto, decode, stored_crop, stored_photo
from pfcluster.data.jpeg import UnreadablePhotoError
from pfcluster.data.labels import CANONICAL
from pfcluster.data.manifest import BUILD_FOLDER, ShardFile
from pfcluster.data.raw.base import RawDataset, RawPhoto, read_bytes

WINDOW_PHOTOS = 64
WINDOW_PIXELS = 64_000_000
"""Limits of a window of photos in memory; photos of equal size within a window are detected as a batch."""


@dataclass(frozen=True)
class ShardResult:
    """Result of a planned shard; the content of its marker file in the build folder."""

    file: ShardFile
    per_class: dict[str, int]
    identities: tuple[str, ...]
    left_out: tuple[LeftOut, ...]

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> ShardResult:
        left_out = tuple(LeftOut(*photo) for photo in values["left_out"])
        return ShardResult(ShardFile(**values["file"]), values["per_class"], tuple(values["identities"]), left_out)


def marker_path(folder: Path, shard: str) -> Path:
    """Marker file of a finished shard."""
    return folder / BUILD_FOLDER / f"{shard}.done.json"


@dataclass(frozen=True)
class ShardMaker:
    """Makes shards; has everything that the shards of a build share."""

    folder: Path
    dataset: str
    datasets: Mapping[str, RawDataset]
    """Listed photos by role (`input`, `test_input`)."""
    size: int
    quality: int
    aligner: Aligner | None
    """None resizes photos without alignment, or cuts the listed boxes from those of `RawDataset.several_faces`."""

    def make(self, shard: PlannedShard, advance: Callable[[int], None]) -> None:
        """Write the shard's tar, index and marker; report photos to `advance`. Raises BuildError, OSError."""
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
        write_checksummed(marker_path(self.folder, shard.name), dataclasses.asdict(result))

    def _raw(self, photo: PlannedPhoto) -> RawPhoto:
        return self.datasets[photo.role].photos[photo.number]

    def _windows(
        self, shard: PlannedShard, left_out: list[LeftOut], advance: Callable[[int], None]
    ) -> Iterator[list[_PlannedImage]]:
        """Decoded photos of the shard, in order, a window at a time; undecodable ones are added to `left_out`."""
        window: list[_PlannedImage] = []
        count = pixels = 0
        for number, photo in enumerate(shard.photos, 1):
            data = self._read(photo)
            count += 1
            try:
                decoded = decode(data)
                window.append(_PlannedImage(photo, decoded))
                pixels += decoded.image.shape[0] * decoded.image.shape[1]
            except UnreadablePhotoError as error:
                left_out.append(LeftOut(photo.role, photo.number, "unreadable", str(error)))
            if count == WINDOW_PHOTOS or pixels >= WINDOW_PIXELS or number == len(shard.photos):
                yield window
                advance(count)
                window, count, pixels = [], 0, 0

    def _read(self, photo: PlannedPhoto) -> bytes:
        """Bytes of the photo's file. Raises BuildError if it differs from the planned one."""
        raw = self._raw(photo)
        try:
            data = read_bytes(raw)
        except OSError as error:
            raise BuildError(
                f"{raw.source} was readable when the build was planned, but is not any more: {error}"
            ) from error
        if hashlib.sha256(data).hexdigest() != photo.sha256:
            raise BuildError(f"{raw.source} has changed since the build was planned; delete the output and build again")
        return data

    def _samples(self, split: str, window: Sequence[_PlannedImage], left_out: list[LeftOut]) -> Iterator[Sample]:
        for planned, face in zip(window, self._faces(window), strict=True):
            photo = planned.photo
            if isinstance(face, Rejected):
                left_out.append(LeftOut(photo.role, photo.number, face.reason, face.detail))
                continue
            if face:
                jpeg = stored_crop(face.image, self.quality)
            else:
                jpeg = stored_photo(planned.decoded, self.size, self.quality)
            yield Sample(photo.key, jpeg, self._record(split, planned, face))

    def _faces(self, window: Sequence[_PlannedImage]) -> Sequence[AlignedFace | Rejected | None]:
        """The face of each photo; None for photos that are stored whole."""
        if self.aligner is None:
            return [self._face_in_box(each) for each in window]
        raw = [self._raw(each.photo) for each in window]
        hints = [Hint(photo.box, photo.landmarks) for photo in raw]
        return self.aligner.align([each.decoded.image for each in window], hints)

    def _face_in_box(self, planned: _PlannedImage) -> AlignedFace | Rejected | None:
        box = self._raw(planned.photo).box
        if box is None or not self.datasets[planned.photo.role].several_faces:
            return None
        return crop_listed_box(planned.decoded.image, box, self.size)

    def _record(self, split: str, planned: _PlannedImage, face: AlignedFace | None) -> dict[str, Any]:
        """JSON of a sample. Box and landmarks are in pixels of the photo after EXIF rotation."""
        photo, (height, width) = planned.photo, planned.decoded.image.shape[:2]
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
            points = face.face.landmarks.tolist()
            record["landmarks"] = [[round(value, 2) for value in point] for point in points] or None
            record |= {"faces_found": face.faces_in_photo, "probability": round(face.face.probability, 4)}
        return record


@dataclass(frozen=True)
class _PlannedImage:
    photo: PlannedPhoto
    decoded: DecodedPhoto
