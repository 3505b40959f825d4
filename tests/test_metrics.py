"""Metrics: what Ray's Prometheus endpoint shows of a run, and what the dashboard asks for."""

from __future__ import annotations

import json
import multiprocessing
import re
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from helpers.runs import bad, good
from ray.util import metrics as ray_metrics

from lrd import DecodingConfig
from pipeline.config import RunConfig
from pipeline.observe import metrics
from pipeline.observe.metrics import METRICS, STATES, PassMetrics, RunMetrics
from pipeline.rows import results_batch
from pipeline.run import generate

DASHBOARD = Path(__file__).parents[1] / "cluster" / "grafana-dashboard.json"
QUESTIONS = [f"Tom has {n} apples and buys 7 more. How many apples are there?" for n in range(48)]


@dataclass
class FakeReplica:
    name: str
    state: str
    num_in_flight: int

    @property
    def in_flight(self) -> range:
        return range(self.num_in_flight)


def exported(name: str) -> set[str]:
    """What a metric of the table is called in Prometheus."""
    suffixes = ("_bucket", "_count", "_sum") if METRICS[name].kind == "histogram" else ("",)
    return {f"ray_{name}{suffix}" for suffix in suffixes}


def queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    known = set().union(*map(exported, METRICS))
    asked = set(re.findall(r"\bray_\w+", " ".join(queries())))
    assert asked <= known
    shown = {name for name in METRICS if exported(name) & asked}
    assert shown == set(METRICS), "each metric is shown somewhere"


def test_the_dashboard_groups_by_labels_that_there_are() -> None:
    for query in queries():
        names = [name for name in METRICS if exported(name) & set(re.findall(r"\w+", query))]
        known = {label for name in names for label in METRICS[name].labels} | {"le"}
        for labels in re.findall(r"by \(([^)]*)\)", query):
            assert set(re.split(r",\s*", labels)) <= known, query


def test_the_dashboards_panels_lie_apart() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_names_are_prometheus_own() -> None:
    for name, metric in METRICS.items():
        assert re.fullmatch(r"lrd_[a-z_]+", name)
        assert name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.boundaries) == (metric.kind == "histogram")
        assert "replica" in metric.labels or metric.kind != "counter"


Recorded = dict[str, dict[tuple[str, ...], list[float]]]
"""Name → values of the labels, in the table's order → what was recorded, one after the other."""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """What Ray's own metric objects are given, which check names and labels without a session."""
    found: Recorded = {}

    def spy(kind: Any, method: str) -> Any:
        class Spied(kind):
            pass

        def record(self: Any, value: float, tags: dict[str, str] | None = None) -> None:
            getattr(kind, method)(self, value, tags)
            name = self.info["name"]
            labels = tuple((tags or {})[label] for label in METRICS[name].labels)
            found.setdefault(name, {}).setdefault(labels, []).append(value)

        setattr(Spied, method, record)
        return Spied

    kinds = {"Counter": "inc", "Gauge": "set", "Histogram": "observe"}
    spied = {name: spy(getattr(ray_metrics, name), how) for name, how in kinds.items()}
    monkeypatch.setattr(metrics, "ray_metrics", SimpleNamespace(**spied))
    return found


def test_rows_are_counted_once_and_by_their_labels(recorded: Recorded) -> None:
    """Without a session of Ray, as in a benchmark of the driver alone."""
    counts = RunMetrics()
    other = good(0, 4, replica="replica-1", bucket=16, num_forwards=5, seconds=2.0)
    counts.rows(results_batch([good(0, 0), bad(0, 1), good(0, 2, num_output_tokens=0)]))
    counts.rows(results_batch([]))
    assert recorded == {}, "recorded with the next tick"
    counts.flush()
    counts.flush()
    counts.rows(results_batch([good(0, 3), other]))
    counts.died("replica-0")
    counts.tick(
        3,
        2,
        [FakeReplica("replica-0", "decoding", 4), FakeReplica("replica-1", "decoding", 1)],
    )
    assert recorded == {
        "lrd_rows_total": {
            ("ok", "replica-0", "8"): [2, 1],
            ("failed", "", "8"): [1],
            ("ok", "replica-1", "16"): [1],
        },
        "lrd_forwards_total": {("replica-0", "8"): [6, 3], ("replica-1", "16"): [5]},
        "lrd_tokens_total": {("replica-0",): [3, 3], ("replica-1",): [3]},
        "lrd_row_forwards": {("8",): [3, 3, 3], ("16",): [5]},
        "lrd_row_seconds": {("8",): [0.5, 0.5, 0.5], ("16",): [2.0]},
        "lrd_failures_total": {("row", ""): [1], ("replica", "replica-0"): [1]},
        "lrd_rows_left": {(): [3]},
        "lrd_queue_depth": {(): [2]},
        "lrd_replicas": {(state,): [2 if state == "decoding" else 0] for state in STATES},
        "lrd_rows_in_flight": {("replica-0",): [4], ("replica-1",): [1]},
    }


def test_a_replica_that_has_gone_holds_nothing(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "TICK_SECONDS", 0.0)
    counts = RunMetrics()
    counts.tick(
        3,
        0,
        [FakeReplica("replica-0", "decoding", 1), FakeReplica("replica-1", "idle", 0)],
    )
    counts.tick(2, 0, [FakeReplica("replica-1", "decoding", 2)])
    counts.tick(2, 0, [FakeReplica("replica-1", "decoding", 2)])
    assert recorded["lrd_rows_in_flight"] == {
        ("replica-0",): [1, 0, 0],
        ("replica-1",): [0, 2, 2],
    }
    assert recorded["lrd_replicas"]["decoding",] == [1, 1, 1]
    monkeypatch.setattr(metrics, "TICK_SECONDS", 60.0)
    counts.tick(1, 0, [])
    assert recorded["lrd_rows_left"] == {(): [3, 2, 2]}, "seldom enough for a busy driver"


def test_a_bucket_without_rows_has_no_busy_slots(recorded: Recorded) -> None:
    passes = PassMetrics("replica-0", 4)
    passes.passed(0.1, {64: 3}, 4)
    passes.passed(0.3, {32: 1}, 0)
    assert recorded == {
        "lrd_passes_total": {("replica-0",): [1, 1]},
        "lrd_pass_seconds": {("replica-0",): [0.1, 0.3]},
        "lrd_slots": {("replica-0",): [4, 4]},
        "lrd_slots_busy": {("replica-0", "64"): [3, 0], ("replica-0", "32"): [1]},
        "lrd_canvases_total": {("replica-0",): [4]},
    }


def scrape() -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """All of our samples at this node's endpoint: name → labels → value."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for line in lines:
        sample = re.fullmatch(r"(ray_lrd_\w+)(?:\{(.*)\})? (\S+)", line)
        if sample:
            labels = re.findall(r'(\w+)="([^"]*)"', sample[2] or "")
            ours = [(key, value) for key, value in labels if key in ours_of(sample[1])]
            place = found.setdefault(sample[1], {})
            place[tuple(ours)] = place.get(tuple(ours), 0.0) + float(sample[3])
    return found


def ours_of(exported_name: str) -> set[str]:
    """Labels of the table, and the classes of histograms; Ray adds its own."""
    return {"le"}.union(*(METRICS[n].labels for n in METRICS if exported_name in exported(n)))


@pytest.mark.slow
def test_a_run_is_seen_at_rays_endpoint(tmp_path: Path) -> None:
    """In a process of its own: what one counts, it counts through all of its sessions."""
    run = multiprocessing.get_context("spawn").Process(target=watch_a_run, args=(tmp_path,))
    run.start()
    run.join()
    assert run.exitcode == 0


def watch_a_run(tmp_path: Path) -> None:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    source = tmp_path / "in"
    source.mkdir()
    pq.write_table(pa.table({"prompt": ["", *QUESTIONS]}), source / "a.parquet")
    seen: dict[str, Any] = {}

    def look(progress: Any) -> None:
        # Replicas end with the run, and their last values with them: look while it is on.
        for name, samples in scrape().items():
            kept = seen.setdefault(name, {})
            kept.update({k: max(v, kept.get(k, 0.0)) for k, v in samples.items()})

    config = RunConfig(
        input=str(source),
        output=str(tmp_path / "out"),
        replicas=2,
        slots=4,
        cpus_per_replica=1.0,
        decoding=DecodingConfig.preset("baseline", gen_length=32),  # Lasts for some reports.
    )
    generate(config, look)
    until = time.monotonic() + 30
    while (
        sum(seen.get("ray_lrd_rows_total", {}).values()) < 1 + len(QUESTIONS)
        and time.monotonic() < until
    ):
        time.sleep(1)
        look(None)
    assert set(seen) >= set().union(*map(exported, METRICS))
    out = pq.read_table(tmp_path / "out" / "data")
    rows = seen["ray_lrd_rows_total"]
    for replica in ("replica-0", "replica-1"):
        counted = sum(n for labels, n in rows.items() if ("replica", replica) in labels)
        assert counted == out["replica"].to_pylist().count(replica)
    assert sum(n for labels, n in rows.items() if ("status", "failed") in labels) == 1
    for name, column in (("forwards", "num_forwards"), ("tokens", "num_output_tokens")):
        total = sum(seen[f"ray_lrd_{name}_total"].values())
        assert total == sum(value or 0 for value in out[column].to_pylist())
    assert seen["ray_lrd_failures_total"] == {(("kind", "row"), ("replica", "")): 1.0}
    assert sum(seen["ray_lrd_row_forwards_count"].values()) == len(QUESTIONS)
    buckets = {str(bucket) for bucket in out["bucket"].drop_null().to_pylist()}
    busy = seen["ray_lrd_slots_busy"]
    assert {dict(labels)["bucket"] for labels in busy} <= buckets
    assert {dict(labels)["replica"] for labels in busy} == {"replica-0", "replica-1"}
    assert 0 < max(busy.values()) <= 4.0
    assert set(seen["ray_lrd_slots"].values()) == {4.0}
    # The last pass's may not have been exported, and no pass on a CPU computes one for nothing.
    canvases = sum(seen["ray_lrd_canvases_total"].values())
    assert 0 < canvases <= sum(out["num_forwards"].drop_null().to_pylist())
    assert {dict(labels)["state"] for labels in seen["ray_lrd_replicas"]} == set(STATES)


def test_the_documentation_has_all_of_them() -> None:
    text = (DASHBOARD.parents[1] / "pipeline" / "README.md").read_text()
    for name, metric in METRICS.items():
        labels = ", ".join(metric.labels)
        assert f"| `ray_{name}` | {metric.kind} | {labels} | {metric.meaning} |" in text
