"""What tests share: one thread a process, a small random model, and one session of Ray."""

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"
# Ray runs its workers at nice 15: on a busy machine tests would wait for them.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray spells it so)

from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """The local Ray of all tests that run on one; its processes can import the tests' modules."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(
        address="local",
        num_cpus=4,  # More than there are, so that several small replicas fit.
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield
    ray.shutdown()


@pytest.fixture
def no_ray() -> Iterator[None]:
    """No session before the test, none after; tests that start their own, or none, ask for it."""
    ray.shutdown()
    yield
    ray.shutdown()


ORDER = {"test_chaos": 0, "ray": 1, "test_golden": 3}
"""Groups that wait more than they compute run first; golden records fill what time is left."""


def group_of(item: pytest.Item) -> str:
    """Tests of one group run in one process: all that need Ray or its absence, else a module."""
    needs_ray = {"ray_session", "no_ray"} & set(getattr(item, "fixturenames", ()))
    return "ray" if needs_ray else item.path.stem


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks in the same hook.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the groups, and mark them for pytest-xdist; golden records go to whoever is free."""
    groups = {item: group_of(item) for item in items}
    # Within a group, tests without the shared session come last, so that it starts once.
    last = {item: "no_ray" in getattr(item, "fixturenames", ()) for item in items}
    items.sort(key=lambda item: (ORDER.get(groups[item], 2), last[item]))
    for item, group in groups.items():
        if group != "test_golden":
            item.add_marker(pytest.mark.xdist_group(group))


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
