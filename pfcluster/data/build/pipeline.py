"""Builds a shard folder: list photos, plan, make shards, and write the manifest last.

A build may be killed at any time and restarted with the same options: until the manifest is written, the plan and a
marker of every finished shard are in `.build/`. The result is byte-identical for any number of workers or restarts, on
one machine with the same package versions.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pfcluster.data.build.align import Aligner, LandmarkAligner
from pfcluster.data.build.build_warnings import build_warnings
from pfcluster.data.build.candidates import LeftOut
from pfcluster.data.build.detect import FaceAligner
from pfcluster.data.build.errors import BuildError
from pfcluster.data.build.folder import PLAN, build_lock
from pfcluster.data.build.inputs import list_photos
from pfcluster.data.build.left_out import left_out_notes, skipped_note
from pfcluster.data.build.make_shard import ShardMaker, ShardResult, marker_path
from pfcluster.data.build.options import BuildOptions
from pfcluster.data.build.plan import SPLITS, Plan, PlannedShard, make_plan, subsample
from pfcluster.data.build.saved_plan import (
    build_identity,
    files_state,
    load_or_make_plan,
    package_versions,
    recorded_name,
    require_same_build,
    require_same_content,
)
from pfcluster.data.build.shard_writer import read_checksummed, write_json, write_table
from pfcluster.data.build.workers import run_workers
from pfcluster.data.manifest import BUILD_FOLDER, FORMAT, MANIFEST, Manifest, SplitInfo, load_manifest, require_files
from pfcluster.data.raw.base import RawDataset
from pfcluster.data.raw.landmarks import with_openface
from pfcluster.data.raw.spool import spool
from pfcluster.system.atomic_files import TEMPORARY_FILES
from pfcluster.system.locks import exclusive_lock

LEFT_OUT_FILE = "left_out.csv"
GENERIC = ("folder", "tar", "csv", "parquet")
"""Layouts that do not identify a dataset."""
BAD = ("missing file", "unreadable")
"""Reasons that count against --max-bad-share."""


@dataclass(frozen=True)
class Progress:
    """Callbacks for progress; counts are photos."""

    start: Callable[[str, int, int], None] = lambda stage, total, done: None
    """Called at the start of a stage with the total number of photos and those done in an earlier run."""
    advance: Callable[[int], None] = lambda photos: None


@dataclass(frozen=True)
class BuildResult:
    """Result of a build or of one slice."""

    manifest: Manifest | None
    """None while shards of other slices are missing."""
    photos_now: int
    """Photos processed by this run, not by earlier ones."""
    warnings: tuple[str, ...]
    shards_left: int = 0
    """Missing shards of all slices."""
    left_out: tuple[str, ...] = ()
    """What the listing leaves out, by name."""


def build(options: BuildOptions, progress: Progress | None = None) -> BuildResult:
    """Build or complete a shard folder, or one slice of it. Raises BuildError, RawDataError, ShardError."""
    progress = progress or Progress()
    options, datasets = _list_inputs(options)
    identity = build_identity(options, datasets)
    number, count = options.slice_of_build()
    with build_lock(options.output, shared=count > 1):
        folder = options.output / BUILD_FOLDER
        if (options.output / MANIFEST).exists():
            _existing_result(options, identity)  # options first: comparing the contents takes longer
        with exclusive_lock(folder / "plan.lock"):
            files = files_state(datasets)
            datasets = {
                role: spool(dataset, folder / f"{role}-{files[:12]}.spool") for role, dataset in datasets.items()
            }
            if (options.output / MANIFEST).exists():
                progress.start("checking", sum(len(dataset.photos) for dataset in datasets.values()), 0)
                plan = make_plan(datasets, options.plan_options(), lambda: progress.advance(1))
                return _with_findings(_existing_result(options, identity, plan), datasets, plan)
            plan = load_or_make_plan(options, datasets, identity, files, progress.start, progress.advance)
        _check_bad(options, datasets, plan.left_out)
        in_slice = plan.shards[number::count]
        missing = [shard for shard in in_slice if not _is_finished(options.output, shard)]
        total, now = (sum(len(shard.photos) for shard in shards) for shards in (in_slice, missing))
        progress.start("faces", total, total - now)
        run_workers(functools.partial(_make_maker, options, datasets), missing, options.workers, progress.advance)
        with exclusive_lock(folder / "merge.lock"):
            if (options.output / MANIFEST).exists():  # written by another slice
                done = replace(_existing_result(options, identity, plan), photos_now=now)
                return _with_findings(done, datasets, plan)
            shards_left = sum(not _is_finished(options.output, shard) for shard in plan.shards)
            if shards_left:
                return BuildResult(None, now, (), shards_left)
            manifest = _finish(options, datasets, identity, plan)
    return _with_findings(BuildResult(manifest, now, ()), datasets, plan)


def _with_findings(result: BuildResult, datasets: Mapping[str, RawDataset], plan: Plan) -> BuildResult:
    """The result of a finished build with its warnings and with what is left out."""
    assert result.manifest is not None
    warnings = build_warnings(result.manifest, plan, datasets)
    return replace(result, warnings=warnings, left_out=_left_out(datasets, plan))


def _left_out(datasets: Mapping[str, RawDataset], plan: Plan) -> tuple[str, ...]:
    """What the listings skip and what the plan leaves out, by name; and the notes of the readers."""
    skipped = [f"{source.name}: {note}" for source in datasets.values() if (note := skipped_note(source))]
    notes = [f"{source.name}: {note}" for source in datasets.values() for note in source.notes]
    return (*left_out_notes(datasets, plan.left_out), *skipped, *notes)


def require_same_listing(options: BuildOptions) -> None:
    """Compare a finished build with its input as it is listed now, without opening a photo. Raises BuildError,
    RawDataError, ShardError.
    """
    options, datasets = _list_inputs(options)
    _existing_result(options, build_identity(options, datasets))


def _list_inputs(options: BuildOptions) -> tuple[BuildOptions, dict[str, RawDataset]]:
    """The photos of each input, with the landmarks of --landmarks, and the options with the dataset's name: without
    --name that of an earlier build of the folder, as the input may have been moved since.
    """
    datasets = list_photos(options)
    if options.landmarks is not None:
        datasets = with_openface(datasets, options.landmarks)
    datasets = {role: subsample(dataset, options.limit, options.seed) for role, dataset in datasets.items()}
    if options.name is None:
        kind = datasets["input"].kind
        name = options.dataset if kind in GENERIC else kind
        options = replace(options, name=recorded_name(options.output) or name)
    return options, datasets


def _existing_result(options: BuildOptions, identity: Mapping[str, Any], plan: Plan | None = None) -> BuildResult:
    """The result of a finished build. Raises BuildError if it was made with other options, from another listing, or
    from files with other contents than those of the plan; ShardError if shards are missing or truncated.
    """
    manifest = load_manifest(options.output)
    source = {key: value for key, value in manifest.source.items() if key not in ("known_identities", "plan_sha256")}
    require_same_build(options.output, {"options": manifest.options, "source": source}, identity)
    require_files(options.output, manifest)
    if plan is not None:
        require_same_content(options.output, plan.digest(), manifest)
    (options.output / BUILD_FOLDER / PLAN).unlink(missing_ok=True)
    return BuildResult(manifest, 0, ())


def _check_bad(options: BuildOptions, datasets: Mapping[str, RawDataset], left_out: Sequence[LeftOut]) -> None:
    """Raises BuildError if too many photos are missing or unreadable."""
    photos = sum(len(dataset.photos) for dataset in datasets.values())
    bad = [photo for photo in left_out if photo.reason in BAD]
    if len(bad) > options.max_bad_share * photos:
        reasons = _counts(Counter(photo.reason for photo in bad))
        first = datasets[bad[0].role].photos[bad[0].number].path
        raise BuildError(
            f"{len(bad)} of {photos} photos cannot be read ({reasons}; the first is {first}), more than --max-bad-share"
            f" {options.max_bad_share}: check the input folder and --images, or raise it; finished shards are kept"
        )


def _make_maker(options: BuildOptions, datasets: Mapping[str, RawDataset]) -> ShardMaker:
    """The ShardMaker of a worker process."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    aligner: Aligner | None = None
    if options.align == "mtcnn":
        aligner = FaceAligner(
            options.size,
            device=options.detector_device(),
            rule=options.face,
            skip_multiple=options.multiple_faces == "leave-out",
        )
    elif options.align == "landmarks":
        aligner = LandmarkAligner(options.size)
    return ShardMaker(options.output, options.dataset, datasets, options.size, options.quality, aligner)


def _is_finished(output: Path, shard: PlannedShard) -> bool:
    """Whether a shard's marker and the files that it names exist."""
    try:
        file = ShardResult.from_json(read_checksummed(marker_path(output, shard.name))).file
        return (output / file.file).stat().st_size == file.bytes and all(
            (output / name).is_file() for name in (file.index_file, file.crc32_file)
        )
    except (OSError, ValueError):
        return False


def _finish(
    options: BuildOptions, datasets: Mapping[str, RawDataset], identity: Mapping[str, Any], plan: Plan
) -> Manifest:
    """Collect the results of all shards, write left_out.csv, and then the manifest. A validation or test split without
    samples is not in the manifest, and its empty shards are removed. Raises BuildError, also if the training split is
    empty.
    """
    results = {
        shard: ShardResult.from_json(read_checksummed(marker_path(options.output, shard.name))) for shard in plan.shards
    }
    left_out = sorted([*plan.left_out, *(photo for result in results.values() for photo in result.left_out)])
    _check_bad(options, datasets, left_out)
    _require_training_samples(results)
    splits = {}
    for split in SPLITS:
        in_split = [result for shard, result in results.items() if shard.split == split]
        if any(result.file.samples for result in in_split):
            splits[split] = _split_info(plan.classes, in_split)
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
        source={**identity["source"], "plan_sha256": plan.digest(), "known_identities": plan.known_identities},
        versions=package_versions(options.align),
    )
    rows = [_left_out_row(datasets, photo) for photo in left_out]
    try:
        for leftover in options.output.glob(TEMPORARY_FILES):
            leftover.unlink()
        for file in (result.file for shard, result in results.items() if shard.split not in splits):
            for name in (file.file, file.index_file, file.crc32_file):
                (options.output / name).unlink(missing_ok=True)
        write_table(options.output / LEFT_OUT_FILE, ("input", "source", "label", "reason", "detail"), rows)
        write_json(options.output / MANIFEST, asdict(manifest), indent=1)
    except OSError as error:
        raise BuildError(f"{options.output} cannot be written: {error.strerror or error}") from error
    (options.output / BUILD_FOLDER / PLAN).unlink()  # build_lock then removes the build folder
    return manifest


def _require_training_samples(results: Mapping[PlannedShard, ShardResult]) -> None:
    """Raises BuildError if no photo of the training split became a sample."""
    if any(result.file.samples for shard, result in results.items() if shard.split == "train"):
        return
    others = any(result.file.samples for result in results.values())
    counted = [result for shard, result in results.items() if shard.split == "train" or not others]
    reasons = Counter(photo.reason for result in counted for photo in result.left_out)
    where = "any photo of the training split" if others else "any photo"
    raise BuildError(f"no face was found in {where} ({_counts(reasons)}); --align none skips detection")


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
