"""Where a shard folder's files are: on this machine, or at a URL from which each is fetched once and kept.

Remote files are kept under their SHA-256, checked as they arrive, so that a cache is never stale, never half a file,
and may be shared by datasets and by all processes of a machine.
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
"""Whose files are fetched. Nothing else is: no `pipe:`, no `ssh:`, no other program is ever started for a name."""
ATTEMPTS = 4
FIRST_PAUSE = 1.0
"""Seconds before the second attempt; twice as long before each further one."""
LARGEST_LISTING = 2**30
"""Bytes of a manifest or an index; larger ones are refused."""


class StoreError(ValueError):
    """A file that is not there or cannot be had: says which and why."""


class Store(Protocol):
    """A folder of shards, wherever it is."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def is_local(self) -> bool:
        """Whether its files lie on this machine: they can all be looked at without fetching them."""

    def listing(self, file: str, checksum: str | None = None) -> bytes:
        """The bytes of a small file. Raises FileNotFoundError, StoreError, OSError."""

    def path(self, file: str, checksum: str) -> Path:
        """Where a file lies on this machine, once it is there. Raises StoreError, OSError."""


class LocalStore:
    """A folder of this machine."""

    is_local = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = str(folder)

    def listing(self, file: str, checksum: str | None = None) -> bytes:
        """See `Store`."""
        path = self.folder / file
        if path.stat().st_size > LARGEST_LISTING:
            raise StoreError(f"{path} has {path.stat().st_size} bytes: it is no listing of this format")
        return path.read_bytes()

    def path(self, file: str, checksum: str) -> Path:
        """See `Store`."""
        return self.folder / file


class RemoteStore:
    """A folder at a URL."""

    is_local = False

    def __init__(self, url: str, cache: Path) -> None:
        self.name = url.rstrip("/")
        self.cache = cache

    def listing(self, file: str, checksum: str | None = None) -> bytes:
        """See `Store`. Without a checksum the file is fetched anew."""
        if checksum is not None:
            return self.path(file, checksum).read_bytes()
        with self._open(file) as remote:
            data: bytes = remote.read(LARGEST_LISTING + 1)
        if len(data) > LARGEST_LISTING:
            raise StoreError(f"{self.name}/{file} is larger than {LARGEST_LISTING} bytes: it is no listing")
        return data

    def path(self, file: str, checksum: str) -> Path:
        """See `Store`."""
        if not re.fullmatch("[0-9a-f]{64}", checksum):
            raise StoreError(f"the checksum of {self.name}/{file} is no SHA-256")
        kept = self.cache / checksum[:2] / checksum
        if kept.exists():
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(kept.with_suffix(".lock")):
            for attempt in range(ATTEMPTS):
                if kept.exists():
                    break
                try:
                    self._fetch(file, checksum, kept)
                except OSError as error:
                    if attempt == ATTEMPTS - 1 or isinstance(error, FileNotFoundError):
                        raise StoreError(f"{self.name}/{file} cannot be fetched: {error or type(error)}") from error
                    time.sleep(FIRST_PAUSE * 2**attempt)
        return kept

    def _fetch(self, file: str, checksum: str, target: Path) -> None:
        """Copy one file, and keep it if it is the one that the manifest speaks of."""
        aside = target.with_suffix(f".{os.getpid()}")

        def fill(written: BinaryIO) -> None:
            with self._open(file) as remote:
                shutil.copyfileobj(remote, written, 1 << 20)

        try:
            write_via_temporary(aside, fill)
            found = sha256(aside)
            if found != checksum:
                raise OSError(f"what arrived has the SHA-256 {found[:12]}..., the manifest says {checksum[:12]}...")
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)

    def _open(self, file: str) -> Any:
        import fsspec

        try:
            return fsspec.open(f"{self.name}/{file}", "rb").open()
        except ImportError as error:
            raise StoreError(
                f"{self.name} needs another package ({error}); install it: pip install 'pfcluster[remote]'"
            ) from error


def open_store(place: str | Path, cache: str | Path | None = None) -> Store:
    """The store of a folder's path or URL. `cache`: folder for what is fetched; default_cache() without. Raises
    StoreError.
    """
    text = str(place)
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*):", text)
    if scheme is None or os.path.isdir(text):
        return LocalStore(Path(text))
    if scheme[1] not in SCHEMES or not text.startswith(f"{scheme[1]}://"):
        raise StoreError(f"{text} is neither a folder nor a URL that is read ({', '.join(SCHEMES)}://...)")
    return RemoteStore(text, Path(cache) if cache is not None else default_cache())


def default_cache() -> Path:
    """$PFCLUSTER_CACHE, or pfcluster in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PFCLUSTER_CACHE") or Path(home) / "pfcluster")
