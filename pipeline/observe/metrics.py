"""Exports a run's metrics to Prometheus through Ray: the table of metrics, and their recorders.

Every node of a Ray cluster exports the metrics of its processes; in Prometheus the names have
Ray's prefix, `ray_lrd_rows_total`. The driver records finished rows (`RunMetrics`), each replica
its passes (`PassMetrics`). Without a Ray session nothing is exported, and nothing fails.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from ray.util import metrics as ray_metrics

TICK_SECONDS = 1.0
"""Time between two recordings by the driver; Ray exports every ten seconds."""
STATES = {
    "starting": "its process starts",
    "waiting": "no node has had room for it for a while",
    "loading": "it loads the model",
    "preparing": "it finds out how many slots fit into memory",
    "compiling": "the first pass of a shape, in which kernels may be compiled",
    "decoding": "it holds rows",
    "idle": "it holds none",
    "draining": "its node will be taken away; it finishes the rows in slots",
    "dead": "it has ended; another is started after a pause",
}
"""States of a replica (`pipeline.replicas.handle.ReplicaHandle.state`) and their meanings."""
PASSES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
SECONDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60]
LONG_SECONDS = [0.1, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800]


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table below."""

    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()
    """Of a histogram's buckets."""


METRICS = {
    "lrd_rows_total": Metric("counter", "finished rows", ("status", "replica", "bucket")),
    "lrd_forwards_total": Metric("counter", "forwards of finished rows", ("replica", "bucket")),
    "lrd_tokens_total": Metric("counter", "tokens before EOS of finished rows", ("replica",)),
    "lrd_row_forwards": Metric("histogram", "forwards a row", ("bucket",), tuple(PASSES)),
    "lrd_row_seconds": Metric(
        "histogram", "seconds of a row in its slot", ("bucket",), tuple(LONG_SECONDS)
    ),
    "lrd_failures_total": Metric("counter", "failed rows, dead replicas", ("kind", "replica")),
    "lrd_queue_depth": Metric("gauge", "tokenised rows that wait in the driver"),
    "lrd_rows_in_flight": Metric("gauge", "rows that a replica holds", ("replica",)),
    "lrd_rows_left": Metric("gauge", "rows of the run that are not finished"),
    "lrd_replicas": Metric("gauge", "replicas by state", ("state",)),
    "lrd_passes_total": Metric("counter", "forward passes of a replica", ("replica",)),
    "lrd_pass_seconds": Metric("histogram", "seconds of a pass", ("replica",), tuple(SECONDS)),
    "lrd_slots": Metric("gauge", "slots of a replica", ("replica",)),
    "lrd_slots_busy": Metric("gauge", "slots that hold a row", ("replica", "bucket")),
    "lrd_canvases_total": Metric(
        "counter", "canvases that went through the model, those of free slots too", ("replica",)
    ),
}
"""By name, without Ray's prefix."""


class RunMetrics:
    """The driver's metrics: finished rows, and the progress of the run."""

    def __init__(self) -> None:
        self._rows = _made("lrd_rows_total")
        self._forwards = _made("lrd_forwards_total")
        self._tokens = _made("lrd_tokens_total")
        self._row_forwards = _made("lrd_row_forwards")
        self._row_seconds = _made("lrd_row_seconds")
        self._failures = _made("lrd_failures_total")
        self._queue = _made("lrd_queue_depth")
        self._in_flight = _made("lrd_rows_in_flight")
        self._left = _made("lrd_rows_left")
        self._replicas = _made("lrd_replicas")
        self._ticked_at = 0.0
        self._known: set[str] = set()
        self._new: list[pa.RecordBatch] = []

    def rows(self, results: pa.RecordBatch) -> None:
        """Note rows of `RESULT_SCHEMA` that have finished. They are recorded with the next tick,
        since many small tables cost the driver five times what a large one does."""
        self._new.append(results)

    def flush(self) -> None:
        """Record the rows that were noted."""
        if self._new:
            self._record(pa.Table.from_batches(self._new))
            self._new.clear()

    def _record(self, results: pa.Table) -> None:
        counts: Counter[tuple[str, str, str]] = Counter()
        forwards: Counter[tuple[str, str]] = Counter()
        tokens: Counter[str] = Counter()
        columns = ("status", "replica", "bucket", "num_forwards", "num_output_tokens", "seconds")
        for row in zip(*(results[name].to_pylist() for name in columns), strict=True):
            status, replica, bucket = (_label(value) for value in row[:3])
            counts[status, replica, bucket] += 1
            if status != "ok":
                self._failures.inc(1, {"kind": "row", "replica": replica})
                continue
            _, _, _, num_forwards, num_tokens, seconds = row
            forwards[replica, bucket] += num_forwards
            tokens[replica] += num_tokens
            self._row_forwards.observe(num_forwards, {"bucket": bucket})
            self._row_seconds.observe(seconds, {"bucket": bucket})
        for (status, replica, bucket), count in counts.items():
            self._rows.inc(count, {"status": status, "replica": replica, "bucket": bucket})
        for (replica, bucket), count in forwards.items():
            _add(self._forwards, count, {"replica": replica, "bucket": bucket})
        for replica, count in tokens.items():
            _add(self._tokens, count, {"replica": replica})

    def died(self, replica: str) -> None:
        """Count a replica's death."""
        self._failures.inc(1, {"kind": "replica", "replica": replica})

    def tick(self, num_left: int, num_waiting: int, replicas: Iterable[Any]) -> None:
        """Record the progress, at most once in `TICK_SECONDS`.

        num_left: rows that are not finished. num_waiting: those of them that are tokenised and not
        with a replica. replicas: their `ReplicaHandle`s.
        """
        if time.monotonic() - self._ticked_at < TICK_SECONDS:
            return
        self._ticked_at = time.monotonic()
        self.flush()
        self._left.set(num_left)
        self._queue.set(num_waiting)
        states: Counter[str] = Counter()
        held = dict.fromkeys(self._known, 0)
        for replica in replicas:
            states[replica.state] += 1
            held[replica.name] = len(replica.in_flight)
        for state in STATES:
            self._replicas.set(states[state], {"state": state})
        # A gauge keeps its last value, so a replica that is gone gets 0.
        for replica, num_rows in held.items():
            self._in_flight.set(num_rows, {"replica": replica})
        self._known = set(held)


class PassMetrics:
    """A replica's metrics: its passes and slots."""

    def __init__(self, replica: str, num_slots: int) -> None:
        self._replica = {"replica": replica}
        self._num_slots = num_slots
        self._passes = _made("lrd_passes_total")
        self._seconds = _made("lrd_pass_seconds")
        self._slots = _made("lrd_slots")
        self._busy = _made("lrd_slots_busy")
        self._canvases = _made("lrd_canvases_total")
        self._buckets: set[int] = set()

    def passed(self, seconds: float, busy: Mapping[int, int], num_canvases: int) -> None:
        """Record a pass that has ended. busy: slots that hold a row now, by bucket. num_canvases:
        canvases that it computed."""
        self._passes.inc(1, self._replica)
        self._seconds.observe(seconds, self._replica)
        _add(self._canvases, num_canvases, self._replica)
        self._slots.set(self._num_slots, self._replica)
        self._buckets |= busy.keys()
        for bucket in self._buckets:
            self._busy.set(busy.get(bucket, 0), {**self._replica, "bucket": str(bucket)})


def _made(name: str) -> Any:
    """Ray's metric object for an entry of the table."""
    metric = METRICS[name]
    if metric.kind == "histogram":
        boundaries = list(metric.boundaries)
        return ray_metrics.Histogram(name, metric.meaning, boundaries, metric.labels)
    kind = ray_metrics.Counter if metric.kind == "counter" else ray_metrics.Gauge
    return kind(name, metric.meaning, metric.labels)


def _add(counter: Any, count: int, labels: dict[str, str]) -> None:
    """Increment a counter; Ray refuses an increment of 0."""
    if count:
        counter.inc(count, labels)


def _label(value: object) -> str:
    return "" if value is None else str(value)
