"""Let the kernel refuse system calls with an error number, as a file system without locks or a failing disk does."""

from __future__ import annotations

import ctypes
import errno
import platform
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")
NUMBERS = {"x86_64": {"flock": 73, "fsync": 74}, "aarch64": {"flock": 32, "fsync": 82}}
PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 22, 24, 38
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
LOAD, EQUALS, RETURN = 0x20, 0x15, 0x06
ERRNO, ALLOW = 0x50000, 0x7FFF0000


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("value", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def refuse(call: str, number: int) -> None:
    """Refuse a system call in this thread, and in the threads and processes that it starts, for good (seccomp)."""
    instructions = (_Instruction * 4)(
        _Instruction(LOAD, 0, 0, 0),
        _Instruction(EQUALS, 0, 1, NUMBERS[platform.machine()][call]),
        _Instruction(RETURN, 0, 0, ERRNO | number),
        _Instruction(RETURN, 0, 0, ALLOW),
    )
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(_Program(4, instructions)), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp is not available here")


def where_refused(call: str, number: int, action: Callable[[], T]) -> T:
    """Call `action` in a thread in which a system call is refused; returns its result or raises its exception."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            refuse(call, number)
            results.append(action())
        except BaseException as error:  # raised by the caller below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in errors:
        if isinstance(error, OSError) and "seccomp" in str(error):
            pytest.skip(f"{error} ({errno.errorcode.get(error.errno or 0)})")
        raise error
    return results[0]


def bound_by_permissions() -> None:
    """Let permissions bind root, too, in the program that this process executes. For `preexec_fn`."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
