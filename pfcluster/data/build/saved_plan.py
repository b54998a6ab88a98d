"""The plan of a build on disk, and the identity of a build: its options, inputs and package versions.

A folder is only continued by a build with the same identity, and only if the inputs' files have the same contents: the
plan holds the checksum of every photo.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pfcluster.config.io import flatten
from pfcluster.data.build.errors import BuildError
from pfcluster.data.build.folder import PLAN
from pfcluster.data.build.left_out import skipped_files
from pfcluster.data.build.options import BuildOptions
from pfcluster.data.build.plan import Plan, listing_digest, make_plan
from pfcluster.data.build.shard_writer import read_checksummed, write_checksummed
from pfcluster.data.manifest import BUILD_FOLDER, MANIFEST, Manifest, ShardError, load_manifest
from pfcluster.data.raw.base import RawDataset

DELETE = "delete the folder to build again, or use another --output"


def build_identity(options: BuildOptions, datasets: Mapping[str, RawDataset]) -> dict[str, Any]:
    """Options and inputs as the manifest records them."""
    inputs = {
        role: {
            "name": dataset.name,
            "kind": dataset.kind,
            "photos": len(dataset.photos),
            "other_files": dataset.other_files,
            "skipped": skipped_files(dataset),
            "votes": dataset.votes,
        }
        for role, dataset in datasets.items()
    }
    source = {**inputs, "listing_sha256": listing_digest(datasets)}
    return {"options": options.content_options(), "source": source}


def package_versions(align: str) -> dict[str, str]:
    """Versions of the packages that determine the content of the shards."""
    names = ["numpy", "pillow", "webdataset", "opencv-python-headless"]
    versions = {}
    for name in [*names, "torch", "facenet-pytorch"] if align == "mtcnn" else names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def recorded_name(output: Path) -> str | None:
    """The dataset's name in the finished or unfinished build of a folder; None if there is none. Raises ShardError."""
    path = output / BUILD_FOLDER / PLAN
    try:
        if (output / MANIFEST).exists():
            return load_manifest(output).name
        return str(read_checksummed(path)["identity"]["options"]["name"]) if path.exists() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ShardError):
            raise
        return None  # `load_or_make_plan` names the damage


def require_same_build(output: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises BuildError if two identities differ: names the fields with their old and new values. The names of the
    inputs' folders may differ: an input can be moved.
    """
    old, new = flatten(before), flatten(now)
    moved = {f"source.{role}.name" for role in ("input", "test_input")}
    differing = sorted(key for key in (old.keys() | new.keys()) - moved if old.get(key) != new.get(key))
    lines = [f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in differing if not key.endswith("sha256")]
    if lines:
        changes = "; ".join(lines)
        raise BuildError(f"{output} contains a build with other options: {changes}. Use the same options, or {DELETE}")
    if differing:
        raise BuildError(
            f"{output} contains a build of another input: the input's photos, labels, splits or other fields have"
            f" changed since; {DELETE}"
        )


def require_same_content(output: Path, plan_digest: str, manifest: Manifest) -> None:
    """Raises BuildError if a finished build was made from files with other contents than those of a plan."""
    recorded = manifest.source.get("plan_sha256")
    if recorded is None:
        raise BuildError(
            f"{output} was built by a version that did not record the contents of its input, so it"
            f" cannot be told whether they have changed; {DELETE}"
        )
    if recorded != plan_digest:
        raise BuildError(f"{output} was built from other photos: files of the input have changed since; {DELETE}")


def files_state(datasets: Mapping[str, RawDataset]) -> str:
    """Hash of the sizes and times of all files with photos; while it is unchanged, so are their contents."""
    digest = hashlib.sha256()
    for path in sorted({photo.path for dataset in datasets.values() for photo in dataset.photos if photo.path}):
        try:
            status = os.stat(path)
            state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        except OSError:
            state = []
        digest.update(json.dumps([path, state]).encode())
    return digest.hexdigest()


def load_or_make_plan(
    options: BuildOptions,
    datasets: Mapping[str, RawDataset],
    identity: Mapping[str, Any],
    files: str,
    start: Callable[[str, int, int], None],
    advance: Callable[[int], None],
) -> Plan:
    """The saved plan, or a new one, which is saved. `files` is the inputs' `files_state`; `start` and `advance` are as
    in `Progress`. Raises BuildError, also if files have other contents than when the plan was made.
    """
    path = options.output / BUILD_FOLDER / PLAN
    photos = sum(len(dataset.photos) for dataset in datasets.values())
    identity = {**identity, "versions": package_versions(options.align)}
    if path.exists():
        try:
            saved = read_checksummed(path)
        except (OSError, ValueError) as error:
            raise BuildError(f"{path} cannot be read ({error}); {DELETE}") from error
        require_same_build(options.output, saved["identity"], identity)
        plan = Plan.from_json(saved["plan"])
        if saved.get("files") == files:
            return plan
        start("checking", photos, 0)
        if make_plan(datasets, options.plan_options(), lambda: advance(1)).digest() != plan.digest():
            raise BuildError(
                f"files of the input have changed since the build in {options.output} was planned; {DELETE}"
            )
    else:
        start("reading", photos, 0)
        plan = make_plan(datasets, options.plan_options(), lambda: advance(1))
    try:
        write_checksummed(path, {"identity": identity, "files": files, "plan": plan.to_json()})
    except OSError as error:
        raise BuildError(f"{path} cannot be written: {error.strerror or error}") from error
    return plan
