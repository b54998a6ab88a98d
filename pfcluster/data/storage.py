"""Access to the files of a shard folder: on this machine, or at a URL, downloaded once into a cache.

Cached files are named by their SHA-256, which is verified after the download; a `.verified` file beside each records
the file's size and time at that moment. An entry that has changed since is verified again and, if it is damaged,
downloaded again. So all datasets and processes of a machine can share the cache.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from pfcluster.config import ConfigError
from pfcluster.config.urls import refuse_credentials, with_variables
from pfcluster.system.atomic_files import sha256, write_atomically, write_via_temporary
from pfcluster.system.credentials import hide_credentials
from pfcluster.system.extras import install_command
from pfcluster.system.home import home_folder
from pfcluster.system.locks import exclusive_lock
from pfcluster.system.os_errors import describe, is_full, is_transient, is_users, retry_transient

SCHEMES = ("http", "https", "s3", "gs", "gcs")
"""URL schemes that are allowed. `pipe:`, `ssh:` and the like are rejected: no URL can start another program."""
ATTEMPTS = 4
FIRST_DELAY = 1.0
"""Seconds before the second attempt; doubled for each further one."""
MISSING = (404, 410)
"""HTTP statuses of a file that does not exist."""
LATER = (408, 425, 429)
"""HTTP statuses below 500 that another attempt may change."""
MAX_METADATA_BYTES = 2**30
"""Larger manifests and indexes are rejected."""
BLOCK = 1 << 20
T = TypeVar("T")


class StoreError(ValueError):
    """A file cannot be read, for a reason that the user can correct. The message names the file and the reason."""


class WrongDownloadError(OSError):
    """A file was downloaded with another checksum than the manifest's."""


class Store(Protocol):
    """A shard folder, local or remote."""

    @property
    def name(self) -> str:
        """Path or URL, for messages."""

    @property
    def is_local(self) -> bool:
        """Whether its files are on this machine."""

    def read_metadata(self, file: str, checksum: str | None = None) -> bytes:
        """Contents of a manifest or an index, read again after a transient error. Raises FileNotFoundError, StoreError,
        OSError.
        """

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
        size = retry_transient(path.stat).st_size
        if size > MAX_METADATA_BYTES:
            raise StoreError(f"{path} has {size} bytes, too many for a manifest or an index")
        return retry_transient(path.read_bytes)

    def local_path(self, file: str, checksum: str) -> Path:
        """See `Store`."""
        return self.folder / file


class RemoteStore:
    """A folder at a URL."""

    is_local = False

    def __init__(self, url: str, cache: Path) -> None:
        """`url` may name environment variables as `${NAME}`: their values are used, and appear in no message."""
        self.name = url.rstrip("/")
        self.cache = cache
        self._url = with_variables(self.name)

    def read_metadata(self, file: str, checksum: str | None = None) -> bytes:
        """See `Store`. Without a checksum the file is downloaded on each call."""
        if checksum is None:
            return self._retried(file, lambda: self._read(file))
        data = retry_transient(self.local_path(file, checksum).read_bytes)
        if hashlib.sha256(data).hexdigest() != checksum:
            _stamp(self._cached(file, checksum)).unlink(missing_ok=True)
            data = self.local_path(file, checksum).read_bytes()
        return data

    def local_path(self, file: str, checksum: str) -> Path:
        """See `Store`."""
        cached = self._cached(file, checksum)
        if _is_verified(cached) or _verify(cached, checksum):
            return cached
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(cached.with_suffix(".lock")):
                if not _is_verified(cached):  # another process may have downloaded it meanwhile
                    self._retried(file, lambda: self._download(file, checksum, cached))
        except FileNotFoundError:
            raise
        except OSError as error:
            if is_transient(error):
                raise
            raise StoreError(f"data.cache {self.cache} cannot be used: {describe(error)}") from error
        return cached

    def _cached(self, file: str, checksum: str) -> Path:
        """Where the cache keeps a file."""
        if not re.fullmatch("[0-9a-f]{64}", checksum):
            raise StoreError(f"the checksum of {self.name}/{file} is not a SHA-256")
        return self.cache / checksum[:2] / checksum

    def _retried(self, file: str, fetch: Callable[[], T]) -> T:
        """The result of `fetch`, tried ATTEMPTS times. Raises FileNotFoundError, StoreError for what users can correct,
        and OSError (EREMOTEIO) for a server or network that fails.
        """
        for attempt in range(ATTEMPTS):
            try:
                return fetch()
            except FileNotFoundError:
                raise
            except OSError as error:
                if is_full(error):
                    raise StoreError(f"data.cache {self.cache} cannot be used: {describe(error)}") from error
                if attempt == ATTEMPTS - 1:
                    reason = self._public(str(error) or type(error).__name__)
                    if isinstance(error, WrongDownloadError | PermissionError) or is_users(error):
                        raise StoreError(f"{self.name}/{file} cannot be downloaded: {reason}") from None
                    message = f"it cannot be downloaded: {reason}"
                    raise OSError(errno.EREMOTEIO, message, f"{self.name}/{file}") from None
            time.sleep(FIRST_DELAY * 2**attempt)
        raise AssertionError("unreachable: ATTEMPTS is positive")

    def _read(self, file: str) -> bytes:
        """The whole content of a remote file. A stream of unknown length returns less than was asked for."""
        blocks, size = [], 0
        with self._open(file) as remote:
            while block := remote.read(BLOCK):
                blocks.append(block)
                size += len(block)
                if size > MAX_METADATA_BYTES:
                    raise StoreError(
                        f"{self.name}/{file} has more than {MAX_METADATA_BYTES} bytes, too many for a manifest or an"
                        " index"
                    )
        return b"".join(blocks)

    def _download(self, file: str, checksum: str, target: Path) -> None:
        """Download one file; move it to `target` if its SHA-256 is `checksum`, else raise OSError."""
        staging = target.with_suffix(f".{os.getpid()}")

        def copy(local: BinaryIO) -> None:
            with self._open(file) as remote:
                shutil.copyfileobj(remote, local, BLOCK)

        try:
            write_via_temporary(staging, copy)
            actual = sha256(staging)
            if actual != checksum:
                raise WrongDownloadError(
                    f"the download has the SHA-256 {actual[:12]}..., the manifest says {checksum[:12]}..."
                )
            os.replace(staging, target)
            _record_state(target)
        finally:
            staging.unlink(missing_ok=True)

    @contextmanager
    def _open(self, file: str) -> Iterator[Any]:
        """A remote file, opened for reading. Raises OSError, whatever the protocol's library raises; StoreError."""
        import fsspec

        try:
            with fsspec.open(f"{self._url}/{file}", "rb").open() as remote:
                yield remote
        except ImportError as error:
            raise StoreError(
                f"{self.name} needs a package that is not installed ({error}): {install_command('remote')}"
            ) from error
        except FileNotFoundError as error:
            failure = error.__cause__ if self._url.startswith("http") else None
            if not isinstance(failure, Exception) or _status(failure) in MISSING:
                raise FileNotFoundError(f"{self.name}/{file} does not exist") from None
            raise _download_error(failure) from failure  # fsspec calls every failed request of HTTP a missing file
        except (OSError, StoreError):
            raise
        except Exception as error:  # every protocol's library has errors of its own, such as aiohttp.ClientPayloadError
            raise _download_error(error) from error

    def _public(self, message: str) -> str:
        """A library's message with the name of the store instead of its URL, and without credentials."""
        return hide_credentials(message.replace(self._url, self.name))


def _status(error: BaseException) -> int | None:
    """HTTP status of an error of aiohttp; None if there was no answer. A missing file has none or 404."""
    if isinstance(error, FileNotFoundError):
        return MISSING[0]
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _download_error(error: Exception) -> OSError:
    """An OSError for an error of a protocol's library; PermissionError if the server refuses the request."""
    status = _status(error)
    refused = status is not None and 400 <= status < 500 and status not in LATER
    return (PermissionError if refused else OSError)(f"{type(error).__name__}: {error}")


def _stamp(cached: Path) -> Path:
    return cached.with_suffix(".verified")


def _state(cached: Path) -> str:
    """Size and modification time of a file, which change when something writes to it."""
    status = cached.stat()
    return f"{status.st_size} {status.st_mtime_ns}\n"


def _is_verified(cached: Path) -> bool:
    """Whether a cached file is as it was when its checksum was verified."""
    try:
        return _stamp(cached).read_text() == _state(cached)
    except (OSError, ValueError):
        return False


def _verify(cached: Path, checksum: str) -> bool:
    """Whether a cached file exists and has its checksum; records that it has."""
    try:
        intact = sha256(cached) == checksum
    except OSError:
        return False
    if intact:
        _record_state(cached)
    return intact


def _record_state(cached: Path) -> None:
    """Note that a file has its checksum; in a cache that cannot be written it is verified each time."""
    with suppress(OSError):
        write_atomically(_stamp(cached), _state(cached))


def open_store(place: str | Path, cache: str | Path | None = None) -> Store:
    """The store of a folder's path or URL. Downloads go to `cache`, by default `default_cache()`. Raises StoreError."""
    text = str(place)
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*):", text)
    if scheme is None or os.path.isdir(text):
        return LocalStore(Path(text))
    if scheme[1] not in SCHEMES or not text.startswith(f"{scheme[1]}://"):
        shown = hide_credentials(text)
        raise StoreError(f"{shown} is neither a folder nor a supported URL ({', '.join(SCHEMES)}://...)")
    try:
        refuse_credentials("the URL", text)
        return RemoteStore(text, Path(cache) if cache is not None else default_cache())
    except ConfigError as error:
        raise StoreError(str(error)) from error


def default_cache() -> Path:
    """$PFCLUSTER_CACHE, else `pfcluster` in the user's cache folder. Raises StoreError if there is no home folder."""
    if os.environ.get("PFCLUSTER_CACHE"):
        return Path(os.environ["PFCLUSTER_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "pfcluster"
    home = home_folder()
    if home is None:
        raise StoreError(
            "there is no folder for the cache: HOME is not set, and the system does not know this user; set"
            " PFCLUSTER_CACHE, or data.cache, to a folder that can be written"
        )
    return home / ".cache" / "pfcluster"
