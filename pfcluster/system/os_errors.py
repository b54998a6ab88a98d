"""Interprets an OSError: whether a retry helps, and one sentence on what failed and what to do."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
FULL = (errno.ENOSPC, errno.EDQUOT)
"""The only errors that mean a full disk: a retry fails in the same way until somebody frees space."""
TRANSIENT = (
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EREMOTEIO,
    errno.ENODEV,
    errno.ENXIO,
    errno.ENOTCONN,
    errno.ESHUTDOWN,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.EPIPE,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EAGAIN,
)
"""Errors of disks, file servers and networks, which may be over at the next attempt."""
USERS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EMFILE,
    errno.ENFILE,
    errno.EFBIG,
)
"""Errors of paths, permissions and limits."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of flock(2) on file systems without locks."""
DELAYS = (0.5, 2.0, 8.0)
"""Seconds before each further attempt of `retry_transient`."""
ADVICE = {
    errno.ENOSPC: "free space there, or choose another folder",
    errno.EDQUOT: "your quota is used up: free space, or choose another folder",
    errno.EACCES: "check owner and permissions, or choose another folder",
    errno.EPERM: "check owner and permissions, or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.EMFILE: "raise this shell's limit, e.g. `ulimit -n 65536`, and run the same command again",
    errno.ENFILE: "close other programs, or ask the administrator to raise fs.file-max",
    errno.EFBIG: "raise this shell's limit, e.g. `ulimit -f unlimited`, or choose a file system with larger files",
    errno.ENOMEM: "memory, or the number of mappings of a process (vm.max_map_count), is used up",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "the storage failed: check `dmesg` and the file server, then run the same command again",
    errno.ESTALE: "the file server has restarted or replaced the file: run the same command again",
    errno.ENOLCK: "the file system has no locks, or its lock service is down",
}


def describe(error: OSError) -> str:
    """The path, the reason with the name of its number, and what to do, in one sentence."""
    if error.errno is None or error.strerror is None:
        return str(error) or type(error).__name__
    path = next((f"{os.fsdecode(name)}: " for name in (error.filename,) if isinstance(name, str | bytes)), "")
    number = errno.errorcode.get(error.errno)
    advice = ADVICE.get(error.errno)
    return f"{path}{error.strerror}{f' ({number})' if number else ''}{f'; {advice}' if advice else ''}"


def with_path(error: OSError, path: object) -> OSError:
    """The same error with the path of the file, where the system call knew only its descriptor."""
    if error.errno is None or error.filename is not None:
        return error
    return OSError(error.errno, error.strerror, str(path))


def is_full(error: OSError) -> bool:
    """Whether the disk or the quota is full."""
    return error.errno in FULL


def is_users(error: OSError) -> bool:
    """Whether a path, a permission or a limit is to be corrected before another attempt."""
    return error.errno in USERS


def is_transient(error: OSError) -> bool:
    """Whether storage or network failed in a way that may be over at the next attempt."""
    return error.errno in TRANSIENT or (error.errno is None and not isinstance(error, ValueError))


def retry_transient(action: Callable[[], T], delays: tuple[float, ...] | None = None) -> T:
    """Call `action`; after a transient OSError wait and call it again, by default after `DELAYS`. Raises the OSError of
    the last attempt.
    """
    for delay in DELAYS if delays is None else delays:
        try:
            return action()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
        time.sleep(delay)
    return action()
