"""Measures a finished run for a table's cell: accuracy, forwards, tokens, time.

Reads files alone. Time is given only where one undisturbed driver decoded the whole run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.output.run_folder import read_run
from pipeline.output.run_records import Event
from pipeline.output.statistics import Counts, count_rows
from pipeline.scoring.evaluate import evaluate
from pipeline.scoring.tasks import task_named
from pipeline.storage.storage import Storage

DISTURBANCES = (
    *("replica died", "replica notice", "replica drained", "replica retired", "node lost"),
    "replicas",
)
"""Events after which a run's time includes more than its decoding."""
MACHINE = ("replicas", "slots", "cpus_per_replica", "gpus_per_replica", "device", "dtype")
"""Settings that must be equal in two runs for their times to be compared."""
MOST_DIFFERENT = 2.0
"""Largest ratio of the times of a pass in two runs of one model and length. Mixing and the number
of open positions explain at most 1.5 (`make bench`), so beyond it the machine was not the same."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The numbers of one run."""

    num_rows: int
    num_failed: int
    accuracy: float
    """Share of all rows."""
    low: float
    high: float
    """Wilson's 95 % interval."""
    forwards: float | None
    """Mean of decoded rows; None where no row was."""
    tokens: float | None
    """Effective tokens, mean of decoded rows."""
    num_unsure: int
    """Rows of which an early stop committed a position above `UNSURE_ENTROPY`."""
    seconds: float | None
    """From the first replica that was up to the last shard; None where that is not known."""
    why_no_seconds: str | None
    pass_ms: float | None
    """Milliseconds of a pass with its slot's neighbours, mean over the passes of decoded rows."""
    machine: dict[str, Any]


def measure(output: Storage, task: str) -> Measured:
    """The numbers of a finished run.

    Raises ValueError where it is not whole, or cannot be scored.
    """
    scored = evaluate(output, task_named(task), num_workers=1)
    run, counts = read_run(output), count_rows(output)
    seconds = decoding_seconds(run.events)
    return Measured(
        num_rows=scored.num_rows,
        num_failed=scored.num_failed,
        accuracy=scored.accuracy,
        low=scored.accuracy_low,
        high=scored.accuracy_high,
        forwards=scored.mean_forwards,
        tokens=scored.mean_output_tokens,
        num_unsure=counts.num_unsure_stops or 0,
        pass_ms=_pass_ms(counts),
        seconds=seconds if isinstance(seconds, float) else None,
        why_no_seconds=seconds if isinstance(seconds, str) else None,
        machine={name: run.settings.get(name) for name in MACHINE},
    )


def decoding_seconds(events: list[Event]) -> float | str:
    """Seconds between the first replica that was up and the run's end, or why they are not known.

    Drivers that found nothing to do do not count.
    """
    started = [n for n, e in enumerate(events) if _began_work(e)]
    if not started:
        return "its events name no driver's start"
    if len(started) > 1:
        return f"{len(started)} drivers worked on it"
    for event in events[started[0] + 1 :]:
        if event.what in DISTURBANCES:
            return f"{event.what} while it was decoded"
        if event.what == "driver finished":
            ups = [e.time for e in events[started[0] :] if e.what == "replica up"]
            return (event.time - ups[0]).total_seconds() if ups else "no replica has reported"
    return "its driver was stopped"


def speed(baseline: Measured | None, measured: Measured | None) -> float | str | None:
    """How many times faster than the baseline, in time; why it is not known; None without both."""
    if baseline is None or measured is None:
        return None
    why = baseline.why_no_seconds or measured.why_no_seconds
    if why or not baseline.seconds or not measured.seconds:
        return why or "it took no time"
    differing = [name for name in MACHINE if baseline.machine[name] != measured.machine[name]]
    if differing:
        return f"{', '.join(differing)} differ from the baseline's run"
    ratio = _times_longer(baseline.pass_ms, measured.pass_ms)
    if ratio is not None and not 1 / MOST_DIFFERENT <= ratio <= MOST_DIFFERENT:
        return f"a pass took {ratio:.2f}× the baseline's; the machine was not the same for both"
    return baseline.seconds / baseline.num_rows / (measured.seconds / measured.num_rows)


def _times_longer(before: float | None, now: float | None) -> float | None:
    return now / before if before and now else None


def fewer_forwards(baseline: Measured | None, measured: Measured | None) -> float | None:
    """The baseline's forwards a row over these."""
    if baseline is None or measured is None or not baseline.forwards or not measured.forwards:
        return None
    return baseline.forwards / measured.forwards


def _began_work(event: Event) -> bool:
    return event.what == "driver started" and event.facts.get("owed_shards") != 0


def _pass_ms(counts: Counts) -> float | None:
    if counts.seconds is None or not counts.num_forwards:
        return None
    return 1000 * counts.seconds / counts.num_forwards
