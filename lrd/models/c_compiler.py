"""Finds out whether this machine can compile: Triton, with which torch.compile makes kernels for a
GPU, builds the code that launches a kernel by a C compiler, when the kernel is first used.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

COMPILERS = ("gcc", "clang")
"""Where the environment variable CC names none, as in `triton/runtime/build.py`."""


def refuse_without_compiler(otherwise: str = "") -> None:
    """Raises ValueError, in one line with the fix, where there is no C compiler or no Python.h.

    otherwise: another way out, at the end of that line.
    """
    named = os.environ.get("CC")
    if not any(map(shutil.which, [named] if named else COMPILERS)):
        what = f"CC names {named!r}, which is not there" if named else "there is no C compiler"
    elif not (python_headers() / "Python.h").is_file():
        what = f"there is not Python.h in {python_headers()}"
    else:
        return
    raise ValueError(
        f"{what}, and kernels are built by one at run time; install it (apt-get install gcc "
        f"libc6-dev python3-dev){otherwise}"
    )


def python_headers() -> Path:
    """The folder in which Triton expects Python.h."""
    scheme = sysconfig.get_default_scheme()
    # Debian's scheme names a folder below /usr/local, where the package's headers are not.
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    return Path(sysconfig.get_path("include", scheme))
