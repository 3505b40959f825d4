"""Metrics: what Ray's Prometheus endpoint shows of a run, and what the dashboard asks for."""

from __future__ import annotations

import json
import multiprocessing
import re
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from helpers.runs import bad, good

from lrd import DecodingConfig
from pipeline.config import RunConfig
from pipeline.observe.metrics import METRICS, STATES, PassMetrics, RunMetrics
from pipeline.rows import results_batch
from pipeline.run import generate

DASHBOARD = Path(__file__).parents[1] / "cluster" / "grafana-dashboard.json"
QUESTIONS = [f"Tom has {n} apples and buys 7 more. How many apples are there?" for n in range(48)]


@dataclass
class FakeReplica:
    name: str
    state: str
    in_flight: dict[Any, Any]


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


def test_without_ray_nothing_breaks() -> None:
    metrics = RunMetrics()
    metrics.rows(results_batch([good(0, 0), bad(0, 1), good(0, 2, num_output_tokens=0)]))
    metrics.rows(results_batch([]))
    metrics.flush()
    metrics.flush()
    metrics.rows(results_batch([good(0, 3)]))
    metrics.died("replica-0")
    metrics.tick(3, 2, [FakeReplica("replica-0", "busy", {(0, 0): "a"})])
    PassMetrics("replica-0", 4).passed(0.1, {64: 3})


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
    assert {dict(labels)["state"] for labels in seen["ray_lrd_replicas"]} == set(STATES)


def test_the_documentation_has_all_of_them() -> None:
    text = (DASHBOARD.parents[1] / "pipeline" / "README.md").read_text()
    for name, metric in METRICS.items():
        labels = ", ".join(metric.labels)
        assert f"| `ray_{name}` | {metric.kind} | {labels} | {metric.meaning} |" in text
