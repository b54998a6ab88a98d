"""Access to the files of a shard folder: on this machine, or at a URL, downloaded once into a cache.

Cached files are named by their SHA-256, which is verified after the download. So the cache never holds outdated or
partial files, and all datasets and processes of a machine can share it.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pfcluster.runs.atomic_files import sha256, write_via_temporary
from pfcluster.runs.locks import exclusive_lock

SCHEMES = ("http", "https", "s3", "gs", "gcs")
"""URL schemes that are allowed. `pipe:`, `ssh:` and the like are rejected: no URL can start another program."""
ATTEMPTS = 4
FIRST_DELAY = 1.0
"""Seconds before the second attempt; doubled for each further one."""
MAX_METADATA_BYTES = 2**30
"""Larger manifests and indexes are rejected."""


class StoreError(ValueError):
    """A file is missing or cannot be downloaded. The message names the file and the reason."""


class Store(Protocol):
    """A shard folder, local or remote."""

    @property
    def name(self) -> str:
        """Path or URL, for messages."""

    @property
    def is_local(self) -> bool:
        """Whether its files are on this machine."""

    def read_metadata(self, file: str, checksum: str | None = None) -> bytes:
        """Contents of a manifest or an index. Raises FileNotFoundError, StoreError, OSError."""

    def local_path(self, file: str, checksum: str) -> Path:
        """Path of a file on this machine, downloaded if necessary. Raises StoreError, OSError."""


class LocalStore:
    """A folder on this machine."""

    is_local = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = str(folder)

    def read_metadata(self, file: str, checksum: str | None = None) -> bytes:
        """See `Store`."""
        path = self.folder / file
        if path.stat().st_size > MAX_METADATA_BYTES:
            raise StoreError(f"{path} has {path.stat().st_size} bytes, too many for a manifest or an index")
        return path.read_bytes()

    def local_path(self, file: str, checksum: str) -> Path:
        """See `Store`."""
        return self.folder / file


class RemoteStore:
    """A folder at a URL."""

    is_local = False

    def __init__(self, url: str, cache: Path) -> None:
        self.name = url.rstrip("/")
        self.cache = cache

    def read_metadata(self, file: str, checksum: str | None = None) -> bytes:
        """See `Store`. Without a checksum the file is downloaded on each call."""
        if checksum is not None:
            return self.local_path(file, checksum).read_bytes()
        with self._open(file) as remote:
            data: bytes = remote.read(MAX_METADATA_BYTES + 1)
        if len(data) > MAX_METADATA_BYTES:
            raise StoreError(
                f"{self.name}/{file} has more than {MAX_METADATA_BYTES} bytes, too many for a manifest or an index"
            )
        return data

    def local_path(self, file: str, checksum: str) -> Path:
        """See `Store`."""
        if not re.fullmatch("[0-9a-f]{64}", checksum):
            raise StoreError(f"the checksum of {self.name}/{file} is not a SHA-256")
        cached = self.cache / checksum[:2] / checksum
        if cached.exists():
            return cached
        cached.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(cached.with_suffix(".lock")):
            for attempt in range(ATTEMPTS):
                if cached.exists():
                    break
                try:
                    self._download(file, checksum, cached)
                except OSError as error:
                    if attempt == ATTEMPTS - 1 or isinstance(error, FileNotFoundError):
                        raise StoreError(f"{self.name}/{file} cannot be downloaded: {error or type(error)}") from error
                    time.sleep(FIRST_DELAY * 2**attempt)
        return cached

    def _download(self, file: str, checksum: str, target: Path) -> None:
        """Download one file; move it to `target` if its SHA-256 is `checksum`, else raise OSError."""
        staging = target.with_suffix(f".{os.getpid()}")

        def copy(local: BinaryIO) -> None:
            with self._open(file) as remote:
                shutil.copyfileobj(remote, local, 1 << 20)

        try:
            write_via_temporary(staging, copy)
            actual = sha256(staging)
            if actual != checksum:
                raise OSError(f"the download has the SHA-256 {actual[:12]}..., the manifest says {checksum[:12]}...")
            os.replace(staging, target)
        finally:
            staging.unlink(missing_ok=True)

    def _open(self, file: str) -> Any:
        import fsspec

        try:
            return fsspec.open(f"{self.name}/{file}", "rb").open()
        except ImportError as error:
            raise StoreError(
                f"{self.name} needs a package that is not installed ({error}); run pip install 'pfcluster[remote]'"
            ) from error


def open_store(place: str | Path, cache: str | Path | None = None) -> Store:
    """The store of a folder's path or URL. Downloads go to `cache`, by default `default_cache()`. Raises StoreError."""
    text = str(place)
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*):", text)
    if scheme is None or os.path.isdir(text):
        return LocalStore(Path(text))
    if scheme[1] not in SCHEMES or not text.startswith(f"{scheme[1]}://"):
        raise StoreError(f"{text} is neither a folder nor a supported URL ({', '.join(SCHEMES)}://...)")
    return RemoteStore(text, Path(cache) if cache is not None else default_cache())


def default_cache() -> Path:
    """$PFCLUSTER_CACHE, else `pfcluster` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PFCLUSTER_CACHE") or Path(home) / "pfcluster")
