"""What tests share: one thread a process, a small random model, and one session of Ray."""

import os
import signal
import sys
import threading

os.environ["OMP_NUM_THREADS"] = "1"
# Otherwise every process that tests start would compile our modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Ray runs its workers at nice 15: on a busy machine tests would wait for them.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray spells it so)

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import golden, golden_decoders
from helpers.random_model import LIVELY, random_model

from lrd.models.checkpoint import LoadedModel

torch.set_num_threads(1)
sys.dont_write_bytecode = False
if not torch.cuda.is_available():
    # Before anything imports Triton, which decides then. Kernels run on a CPU in tests alone.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def model() -> LoadedModel:
    """A random model whose samples take very different numbers of passes."""
    return random_model(**LIVELY)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A replica that runs in this process sets a number of threads, for the tests after it too."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture
def no_pass_goes_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For replicas in this process: one that still decodes when Python ends would abort it."""
    from pipeline.replicas.pass_loop import PassLoop

    loops, work = list[PassLoop](), PassLoop._work

    def noted(loop: PassLoop) -> None:
        loops.append(loop)
        work(loop)

    monkeypatch.setattr(PassLoop, "_work", noted)
    yield
    for loop in loops:
        is_idle = threading.Event()
        loop._orders.put(loop._engines.clear)
        loop._orders.put(is_idle.set)
        assert is_idle.wait(60)


@pytest.fixture(scope="module")
def ray_session() -> None:
    """The local Ray of all tests that run on one, started by the first module that asks for it.

    Its processes can import the tests' modules.
    """
    import ray  # Not above: tests that need no Ray run where there is none.

    if ray.is_initialized():
        return
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(
        address="local",
        num_cpus=4,  # More than there are, so that several small replicas fit.
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )


@pytest.fixture(scope="module")
def kept_replicas(ray_session: None) -> Iterator[None]:
    """`ray_session`, and the runs of a module share the processes of their replicas."""
    from helpers.kept_replicas import keeping

    with keeping():
        yield


@pytest.fixture
def no_ray() -> Iterator[None]:
    """No session before the test, none after; not for a module that uses `ray_session`."""
    import ray

    ray.shutdown()
    yield
    ray.shutdown()


LONGEST = ("test_chaos", "test_streams", "test_pipeline", "test_preview", "test_golden")
"""Modules that start early, so that no process is left with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In front of all are modules that end Ray's session: those behind them share one."""
    ending = {item.path for item in items if "no_ray" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: (item.path not in ending, item.path.stem not in LONGEST))


def pytest_unconfigure() -> None:
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def pytest_configure() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would what tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tables of the golden records where any were compared."""
    stats = terminalreporter.stats
    reports = [r for o in ("passed", "failed", "skipped") for r in stats.get(o, [])]
    reports = [r for r in reports if hasattr(r, "user_properties")]
    for title, lines in (
        ("golden records", golden.summary(reports)),
        ("golden decoders", golden_decoders.summary(reports)),
    ):
        if len(lines) > 1:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.line(line)
