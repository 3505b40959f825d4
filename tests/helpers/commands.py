"""What tests of commands and processes share: a command line parsed, and waiting."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any


def parse(job: Any, *words: str) -> argparse.Namespace:
    """The arguments of a module of `jobs`; SystemExit for those that it does not have."""
    parser = argparse.ArgumentParser()
    job.add_arguments(parser)
    return parser.parse_args(words)


def wait_for(
    condition: Callable[[], Any], seconds: float = 120, shown: Callable[[], Any] = str
) -> None:
    """Wait until the condition holds; AssertionError with what is `shown` after so long."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} s: {shown()}"
        time.sleep(0.1)
