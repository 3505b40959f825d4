"""Runs one program behind walls: the inner half of `sandbox.py`, in a process of its own.

    python -s -P -B confined.py < spec.json > report.json

Imports nothing of the project, so that a program finds nothing of it. Each wall that this
machine allows is raised, and the report names those that stand.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
import types
from collections.abc import Callable
from typing import Any

NOBODY = 65534
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS = 1, 8, 38
CAPABILITY_VERSION, CAP_DAC_READ_SEARCH = 0x20080522, 2
# Landlock has the same three numbers on every architecture.
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, REFER, TRUNCATE = 1 << 0, 1 << 1, 1 << 13, 1 << 14
CHANGE_FOLDERS = sum(1 << bit for bit in range(4, 13))
"""Removing and making entries of every kind."""
SCOPES = 0b11
"""Abstract Unix sockets and signals to processes outside."""

REFUSED = (
    "socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostby", "socket.sendto",
    "os.fork", "os.exec", "os.posix_spawn", "os.system", "os.kill", "os.symlink", "os.startfile",
    "subprocess.", "pty.", "signal.pthread_kill", "ctypes.dlsym", "syslog.", "resource.",
)  # fmt: skip
"""Audit events, by their beginnings, that no program has a reason for."""
PATHS = {
    "os.remove": 1, "os.rename": 2, "os.link": 2, "os.mkdir": 1, "os.rmdir": 1, "os.chdir": 1,
    "os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1, "os.setxattr": 1,
    "os.removexattr": 1,
}  # fmt: skip
"""Audit events that change files, with how many of their arguments are paths."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Read the spec, raise the walls, run the sources, report."""
    spec = json.load(sys.stdin)
    report, leave = os.dup(sys.stdout.fileno()), os._exit
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    walls = raise_walls(os.getcwd(), spec["limits"])
    error = run(spec["sources"])
    # The nonce says that the last source was reached; what the program prints goes nowhere.
    finished = {"nonce": spec["nonce"], "error": error, "walls": walls}
    os.write(report, json.dumps(finished).encode())
    leave(0)


def run(sources: list[str]) -> str | None:
    """Run the sources in one module; what they raise, None where they end."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    try:
        for number, source in enumerate(sources):
            exec(compile(source, f"<source {number}>", "exec"), module.__dict__)
    except BaseException as error:
        # SystemExit too: a program that leaves has not passed.
        return f"{type(error).__name__}: {error}"[:300]
    return None


def raise_walls(folder: str, limits: dict[str, int]) -> list[str]:
    """Confine this process to `folder` and `limits` (resource names → numbers); the walls."""
    libc = ctypes.CDLL(None)
    walls = []
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    own_network = os.getuid() == 0 and libc.unshare(CLONE_NEWNET) == 0
    if become_nobody(libc):
        walls.append("another user")
    # After the change of user, which would clear it: this process ends with its parent.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # A user namespace would end the right to read that `become_nobody` may have kept.
    if not own_network and os.access(os.__file__, os.R_OK):
        own_network = libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0
    if own_network:
        walls.append("no network")
    if landlock(libc, folder):
        walls.append("no writes outside")
    for name, limit in limits.items():
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        # At the lower limit on CPU time a signal says so, at the upper one the kernel kills.
        upper = limit + 1 if name == "RLIMIT_CPU" else limit
        resource.setrlimit(kind, (lower(limit, hard), lower(upper, hard)))
    walls.append("limits")
    sys.addaudithook(refusing(folder))
    walls.append("audit hook")
    return walls


def lower(limit: int, hard: int) -> int:
    """The limit, or the hard one that this process was given where that is lower."""
    return limit if hard == resource.RLIM_INFINITY else min(limit, hard)


def become_nobody(libc: Any) -> bool:
    """Drop root for good, where this is root; root is exempt from the limit on processes."""
    if os.getuid() != 0:
        return False
    libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError:
        return False
    # A Python that lies in root's home is out of others' reach: keep root's right to read.
    kept = 0 if os.access(os.__file__, os.R_OK) else 1 << CAP_DAC_READ_SEARCH
    header = struct.pack("=Ii", CAPABILITY_VERSION, 0)
    return bool(libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)) == 0)


def landlock(libc: Any, folder: str) -> bool:
    """Allow writes in `folder` alone, no new programs, no signals outside (by kernel version)."""
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    writes = WRITE_FILE | CHANGE_FOLDERS
    writes |= (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    handled = struct.pack("QQQ", EXECUTE | writes, 0, SCOPES)
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, handled, 24 if version >= 6 else 8, 0)
    for path, allowed in ((folder, writes), (os.devnull, WRITE_FILE)):
        place = os.open(path, os.O_PATH)
        libc.syscall(LANDLOCK_ADD_RULE, ruleset, 1, struct.pack("=Qi", allowed, place), 0)
        os.close(place)
    restricted: int = libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)
    return restricted == 0


def refusing(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook: the walls once more in Python, for machines that allow no others."""
    real_path, decode = os.path.realpath, os.fsdecode

    def check(event: str, path: Any) -> None:
        if isinstance(path, int):
            return
        real = real_path(decode(path))
        if real not in (folder, os.devnull) and not real.startswith(folder + "/"):
            raise PermissionError(f"{event} is not allowed here: {real}")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            # Without a mode it is os.open, whose path may be relative to another folder.
            if args[1] is None or args[2] & WRITING:
                check(event, args[0])
        elif event in PATHS:
            for path in args[: PATHS[event]]:
                check(event, path)
        elif event.startswith(REFUSED):
            raise PermissionError(f"{event} is not allowed here")
        elif event == "socket.__new__" and args[1] not in (socket.AF_UNIX, -1):
            raise PermissionError("sockets are not allowed here")

    return hook


if __name__ == "__main__":
    main()
