"""Files mapped into memory without keeping a descriptor: a data set may have more shards than a process may open files.

Python's `mmap` duplicates the descriptor of every file that it maps (before 3.13 without a choice).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path

FAILED = ctypes.c_void_p(-1).value


def map_file(path: Path, size: int) -> memoryview:
    """The first `size` bytes of a file, read-only; unmapped with the last reference to them. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_longlong,
    )
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)
    pages = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(pages, libc.munmap, address, size).atexit = False  # views may outlive the modules at exit
    return memoryview(pages).cast("B").toreadonly()
