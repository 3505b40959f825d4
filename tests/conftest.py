"""What every test shares: one thread, and a small model with random weights."""

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"
# Ray runs its workers at nice 15: on a busy machine tests would wait for them.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray spells it so)

from collections.abc import Iterator

import pytest
import ray
import torch
from helpers import golden
from helpers.random_model import LIVELY, random_model

from lrd.models.checkpoint import LoadedModel

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model() -> LoadedModel:
    """A random model whose samples take very different numbers of passes."""
    return random_model(**LIVELY)


@pytest.fixture
def ray_session() -> Iterator[None]:
    """A local Ray of two cores."""
    ray.shutdown()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def pytest_configure() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would what tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A table of the golden records where any were compared."""
    stats = terminalreporter.stats
    reports = [r for o in ("passed", "failed", "skipped") for r in stats.get(o, [])]
    lines = golden.summary([r for r in reports if hasattr(r, "user_properties")])
    if len(lines) > 1:
        terminalreporter.section("golden records")
        for line in lines:
            terminalreporter.line(line)
