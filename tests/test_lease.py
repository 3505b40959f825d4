"""One driver at a time, also where the other one's process cannot be seen."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline.observe.eta import ProgressTracker
from pipeline.output import lease as module
from pipeline.output.lease import Lease, LeaseLostError
from pipeline.output.run_folder import DRIVER, read_lease
from pipeline.storage.storage import Storage

BEAT = 0.2


@pytest.fixture(params=["local", "object store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "out"))
    return Storage(f"memory://bucket{tmp_path.name}/out")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's process can be looked at, as if each ran on a machine of its own."""
    names = iter(range(1000))
    monkeypatch.setattr(module, "_machine", lambda: f"machine {next(names)}")


def change(storage: Storage, **fields: Any) -> None:
    content = read_lease(storage)
    assert content is not None
    storage.write(DRIVER, json.dumps({**asdict(content), **fields}).encode())


def test_a_second_driver_is_refused_while_the_first_lives(
    storage: Storage, elsewhere: None
) -> None:
    first = Lease(storage, BEAT)
    first.acquire()
    with pytest.raises(ValueError, match="another driver writes it"):
        Lease(storage, BEAT).acquire()
    first.check()
    first.release()
    second = Lease(storage, BEAT)
    began = time.monotonic()
    second.acquire()
    assert time.monotonic() - began < module.LOST_AFTER * BEAT, "a released lease is free at once"
    second.release()


def test_a_silent_lease_is_taken_and_its_owner_notices(storage: Storage, elsewhere: None) -> None:
    first = Lease(storage, BEAT)
    first.acquire()
    first._over.set()  # It stands still.
    began = time.monotonic()
    second = Lease(storage, BEAT)
    second.acquire()
    assert time.monotonic() - began >= module.LOST_AFTER * BEAT
    with pytest.raises(LeaseLostError, match="another driver"):
        first.check()
    first.release()
    second.check()
    content = read_lease(storage)
    assert content is not None
    assert content.id == second._id, "who has lost the lease does not touch it"
    second.release()


def test_of_two_at_once_at_most_one_goes_on(storage: Storage, elsewhere: None) -> None:
    leases = [Lease(storage, BEAT) for _ in range(4)]
    held: list[Lease] = []

    def try_it(lease: Lease) -> None:
        try:
            lease.acquire()
            held.append(lease)
        except ValueError:
            pass

    threads = [threading.Thread(target=try_it, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(3 * BEAT)
    alive = []
    for lease in held:
        try:
            lease._renew()
            lease.check()
            alive.append(lease)
        except LeaseLostError:
            pass
    assert len(alive) <= 1
    for lease in leases:
        lease.release()


def test_a_dead_process_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    script = (
        "import sys, os; from pipeline.output.lease import Lease;"
        "from pipeline.storage.storage import Storage;"
        "Lease(Storage(sys.argv[1])).acquire(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    storage = Storage(str(tmp_path))
    assert read_lease(storage) is not None
    began = time.monotonic()
    lease = Lease(storage)
    lease.acquire()
    assert time.monotonic() - began < 3
    lease.release()
    # A process id that was given to another process since does not keep the lease either.
    import os

    change(storage, released=False, pid=os.getpid(), process_began=1.0)
    again = Lease(storage)
    again.acquire()
    again.release()


def test_a_beat_carries_what_was_published(storage: Storage) -> None:
    lease = Lease(storage, BEAT)
    lease.acquire()
    progress = ProgressTracker(12, 7).progress({"replica-0": "decoding"}).to_json()
    lease.publish(lambda: progress)
    until = time.monotonic() + 100 * BEAT
    while (content := read_lease(storage)) is None or content.progress != progress:
        assert time.monotonic() < until, content
        time.sleep(BEAT / 2)
    assert not content.released
    lease.release()
    content = read_lease(storage)
    assert content is not None
    assert content.released


def test_storage_that_stands_still_is_found_out_before_a_write(storage: Storage) -> None:
    lease = Lease(storage, BEAT)
    lease.acquire()
    lease._over.set()
    time.sleep(module.LOST_AFTER * BEAT)
    lease.check()  # Nobody has taken it: it is renewed.
    assert time.monotonic() - lease._beaten_at < module.LOST_AFTER * BEAT / 2
    lease.release()
