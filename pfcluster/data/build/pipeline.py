"""The build of a shard folder: list, plan, make shards, and write the manifest last.

A build may be killed at any moment and started again with the same options: the plan and a marker for every finished
shard lie in `.build/` until the manifest stands. The result is the same bytes for any number of workers or restarts, on
one machine with one set of versions.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pfcluster.data.build.align import Aligner, GivenLandmarks
from pfcluster.data.build.detect import FaceAligner
from pfcluster.data.build.folder import PLAN, build_lock
from pfcluster.data.build.make_shard import ShardMaker, ShardResult, marker_path
from pfcluster.data.build.options import BuildOptions
from pfcluster.data.build.plan import (
    SPLITS,
    BuildError,
    LeftOut,
    Plan,
    PlannedShard,
    listing_digest,
    make_plan,
    subsample,
)
from pfcluster.data.build.shard_writer import read_sealed, write_json, write_sealed, write_table
from pfcluster.data.build.workers import run_workers
from pfcluster.data.manifest import BUILD_FOLDER, FORMAT, MANIFEST, Manifest, SplitInfo, load_manifest
from pfcluster.data.raw.base import RawDataset
from pfcluster.data.raw.landmarks import with_openface
from pfcluster.data.raw.readers import read_raw
from pfcluster.data.raw.spool import spool
from pfcluster.runs.atomic_files import TEMPORARY_FILES
from pfcluster.runs.locks import exclusive_lock

LEFT_OUT_FILE = "left_out.csv"
GENERAL = ("folder", "tar", "csv", "parquet")
"""Layouts that belong to no dataset."""
BAD = ("missing file", "unreadable")
"""Reasons that count against --max-bad-share."""
DELETE = "delete the folder to build it anew, or give another --output"


@dataclass(frozen=True)
class Progress:
    """Where a build reports to; each is called with a number of photos."""

    start: Callable[[str, int, int], None] = lambda stage, total, done: None
    """Stage, photos in all, photos done in an earlier run."""
    advance: Callable[[int], None] = lambda photos: None


@dataclass(frozen=True)
class BuildResult:
    """A finished build."""

    manifest: Manifest | None
    """None while other slices are still to be made."""
    photos_now: int
    """Photos that this run worked on; the rest an earlier one."""
    warnings: tuple[str, ...]
    shards_left: int = 0
    """Of all slices."""


def build(options: BuildOptions, progress: Progress | None = None) -> BuildResult:
    """Make, or finish, the shard folder, or one slice of it. Raises BuildError, RawDataError, ShardError."""
    progress = progress or Progress()
    inputs = {"input": options.input} | ({"test_input": options.test_input} if options.test_input else {})
    datasets = {role: _listed(options, source) for role, source in inputs.items()}
    options = replace(options, name=options.name or _own_name(options, datasets["input"]))
    identity = {"options": options.lasting(), "source": _source(datasets)}
    number, count = options.part()
    with build_lock(options.output, shared=count > 1):
        if (options.output / MANIFEST).exists():
            return _finished_before(options, identity)
        with exclusive_lock(options.output / BUILD_FOLDER / "plan.lock"):
            folder = options.output / BUILD_FOLDER
            datasets = {role: spool(one, folder / f"{role}.spool") for role, one in datasets.items()}
            plan = _load_or_make_plan(options, datasets, identity, progress)
        _check_bad(options, plan.left_out, plan.photos)
        mine = plan.shards[number::count]
        waiting = [shard for shard in mine if not _is_finished(options.output, shard)]
        total, now = (sum(len(shard.photos) for shard in shards) for shards in (mine, waiting))
        progress.start("faces", total, total - now)
        run_workers(functools.partial(_maker, options, datasets), waiting, options.workers, progress.advance)
        with exclusive_lock(options.output / BUILD_FOLDER / "merge.lock"):
            if (options.output / MANIFEST).exists():  # another slice was the last as well
                return replace(_finished_before(options, identity), photos_now=now)
            left = sum(not _is_finished(options.output, shard) for shard in plan.shards)
            if left:
                return BuildResult(None, now, (), left)
            manifest = _finish(options, datasets, identity, plan)
    return BuildResult(manifest, now, _warnings(manifest))


def _own_name(options: BuildOptions, dataset: RawDataset) -> str:
    """What a dataset is called that was given no name: a known one by its own, others by their folder."""
    return options.dataset if dataset.kind in GENERAL else dataset.kind


def _finished_before(options: BuildOptions, identity: Mapping[str, Any]) -> BuildResult:
    """The result of a folder whose manifest stands, if it is this build's."""
    manifest = load_manifest(options.output)
    source = {key: value for key, value in manifest.source.items() if key != "known_identities"}
    _compare(options.output, {"options": manifest.options, "source": source}, identity)
    (options.output / BUILD_FOLDER / PLAN).unlink(missing_ok=True)
    return BuildResult(manifest, 0, _warnings(manifest))


def _check_bad(options: BuildOptions, left_out: Sequence[LeftOut], photos: int) -> None:
    """Raises BuildError where too many photos are missing or unreadable."""
    bad = [photo for photo in left_out if photo.reason in BAD]
    if len(bad) > options.max_bad_share * photos:
        reasons = _counts(Counter(photo.reason for photo in bad))
        raise BuildError(
            f"{len(bad)} of {photos} photos cannot be read ({reasons}), more than --max-bad-share"
            f" {options.max_bad_share}: check the input's folder and --images, or raise it; what is made is kept"
        )


def _listed(options: BuildOptions, source: Path) -> RawDataset:
    """The photos of an input, with the landmarks that were given for them."""
    dataset = read_raw(source, options.reading(), kind=options.kind)
    if options.landmarks is not None:
        dataset = with_openface(dataset, options.landmarks)
    return subsample(dataset, options.limit, options.seed)


def _maker(options: BuildOptions, datasets: Mapping[str, RawDataset]) -> ShardMaker:
    """Called in each worker."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    aligner: Aligner | None = None
    if options.align == "mtcnn":
        aligner = FaceAligner(
            options.size, device=options.detector_device(), rule=options.face, several=options.several == "take"
        )
    elif options.align == "landmarks":
        aligner = GivenLandmarks(options.size)
    return ShardMaker(options.output, options.dataset, datasets, options.size, options.quality, aligner)


def _source(datasets: Mapping[str, RawDataset]) -> dict[str, Any]:
    """What the manifest says of the inputs; enough to tell whether they have changed."""
    listed = {
        role: {
            "name": dataset.name,
            "kind": dataset.kind,
            "photos": len(dataset.photos),
            "other_files": dataset.other_files,
            "votes": dataset.votes,
        }
        for role, dataset in datasets.items()
    }
    return {**listed, "listing_sha256": listing_digest(datasets)}


def _versions(align: str) -> dict[str, str]:
    """Of the packages that decide bytes."""
    names = ["numpy", "pillow", "webdataset", "opencv-python-headless"]
    found = {}
    for name in [*names, "torch", "facenet-pytorch"] if align == "mtcnn" else names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def _compare(output: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises BuildError where a folder's build was made, or begun, with other options."""
    old, new = _flat(before), _flat(now)
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if differing:
        lines = [f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in differing if not key.endswith("sha256")]
        what = "; ".join(lines) or "the input's photos or labels have changed"
        raise BuildError(f"{output} holds a build with other options: {what}. Repeat those, or {DELETE}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _load_or_make_plan(
    options: BuildOptions, datasets: Mapping[str, RawDataset], identity: Mapping[str, Any], progress: Progress
) -> Plan:
    path = options.output / BUILD_FOLDER / PLAN
    identity = {**identity, "versions": _versions(options.align)}
    if path.exists():
        try:
            stored = read_sealed(path)
        except (OSError, ValueError) as error:
            raise BuildError(f"{path} cannot be read ({error}); {DELETE}") from error
        _compare(options.output, stored["identity"], identity)
        return Plan.from_json(stored["plan"])
    progress.start("reading", sum(len(dataset.photos) for dataset in datasets.values()), 0)
    plan = make_plan(datasets, options.plan(), lambda: progress.advance(1))
    try:
        write_sealed(path, {"identity": identity, "plan": plan.to_json()})
    except OSError as error:
        raise BuildError(f"{path} cannot be written: {error.strerror or error}") from error
    return plan


def _is_finished(output: Path, shard: PlannedShard) -> bool:
    """Whether an earlier run left the shard's marker and the files it speaks of."""
    try:
        file = ShardResult.from_json(read_sealed(marker_path(output, shard.name))).file
        return (output / file.file).stat().st_size == file.bytes and (output / file.index_file).is_file()
    except (OSError, ValueError):
        return False


def _finish(
    options: BuildOptions, datasets: Mapping[str, RawDataset], identity: Mapping[str, Any], plan: Plan
) -> Manifest:
    """Gather the shards' results, write left_out.csv and, last of all, the manifest."""
    results = {
        shard: ShardResult.from_json(read_sealed(marker_path(options.output, shard.name))) for shard in plan.shards
    }
    left_out = sorted([*plan.left_out, *(photo for result in results.values() for photo in result.left_out)])
    _check_bad(options, left_out, plan.photos)
    if not any(result.file.samples for result in results.values()):
        reasons = Counter(photo.reason for photo in left_out)
        raise BuildError(f"no photo gave a face ({_counts(reasons)}); --align none takes photos as they are")
    splits = {}
    for split in SPLITS:
        own = [result for shard, result in results.items() if shard.split == split]
        if own:
            splits[split] = _split_info(plan.classes, own)
    manifest = Manifest(
        format=FORMAT,
        name=options.dataset,
        classes=plan.classes,
        votes=datasets["input"].votes,
        size=options.size,
        splits=splits,
        photos=plan.photos,
        left_out=dict(sorted(Counter(photo.reason for photo in left_out).items())),
        left_out_file=LEFT_OUT_FILE,
        options=dict(identity["options"]),
        source={**identity["source"], "known_identities": plan.known_identities},
        versions=_versions(options.align),
    )
    rows = [_left_out_row(datasets, photo) for photo in left_out]
    try:
        for unfinished in options.output.glob(TEMPORARY_FILES):
            unfinished.unlink()
        write_table(options.output / LEFT_OUT_FILE, ("input", "source", "label", "reason", "detail"), rows)
        write_json(options.output / MANIFEST, asdict(manifest), indent=1)
    except OSError as error:
        raise BuildError(f"{options.output} cannot be written: {error.strerror or error}") from error
    (options.output / BUILD_FOLDER / PLAN).unlink()  # the build folder goes with its lock
    return manifest


def _split_info(classes: Sequence[str], results: Sequence[ShardResult]) -> SplitInfo:
    per_class = {name: sum(result.per_class.get(name, 0) for result in results) for name in classes}
    identities = set().union(*(result.identities for result in results))
    files = tuple(result.file for result in results)
    return SplitInfo(sum(file.samples for file in files), per_class, len(identities), files)


def _left_out_row(datasets: Mapping[str, RawDataset], photo: LeftOut) -> tuple[str, ...]:
    raw = datasets[photo.role].photos[photo.number]
    return photo.role, raw.source, raw.label, photo.reason, photo.detail


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.items())


def _warnings(manifest: Manifest) -> tuple[str, ...]:
    """What a person should know before training on these shards."""
    found = []
    samples = sum(split.samples for split in manifest.splits.values())
    assert manifest.photos == samples + sum(manifest.left_out.values()), "every photo is a sample or left out"
    planned = manifest.source["known_identities"]
    if 0 < planned < samples:
        found.append(
            f"the person is known on {planned} photos only; the others count as people of their own,"
            " so that one person may stand in several splits"
        )
    if planned == 0:
        found.append("no photo says who is on it: splits share no photo, but may share people")
    for name, split in manifest.splits.items():
        empty = [label for label in manifest.classes if not split.per_class[label]]
        if empty:
            found.append(f"the {name} split has no {', '.join(empty)}")
    return tuple(found)
