"""The report: its numbers against pandas, words for what is missing, texts that attack it."""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from helpers.synthetic_run import LENGTH, START, write_events, write_run

from jobs import report as job
from pipeline.report import counting, curves
from pipeline.report.page import SCRIPTS
from pipeline.report.report import make_report
from pipeline.report.samples import Row
from pipeline.storage.storage import Storage

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028&amp;"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    job.add_arguments(parser)
    return job.run(parser.parse_args(words))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a bad call; its one line."""
    assert call(*words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1, printed.err
    return printed.err


def data_of(page: str) -> dict[str, Any]:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    data: dict[str, Any] = json.loads(found.group(1))
    return data


def text_of(page: str) -> str:
    """What a reader sees without the script, roughly."""
    body = page[page.index("<body>") : page.index('<script type="application/json"')]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame, str]:
    """A finished run, its rows, and the page on it."""
    folder = tmp_path_factory.mktemp("report") / "run"
    rows = write_run(folder).to_pandas()
    return folder, rows, make_report(Storage(str(folder)), 30).html


def test_counts_are_those_of_pandas(finished: tuple[Path, pd.DataFrame, str]) -> None:
    _, rows, page = finished
    ok = rows[rows.status == "ok"]
    numbers = data_of(page)["numbers"]
    assert numbers["num_rows"] == len(rows)
    assert numbers["num_failed"] == (rows.status == "failed").sum()
    assert numbers["stops"] == ok.stop_reason.value_counts().to_dict()
    expected = ok.num_forwards.value_counts().to_dict()
    assert {int(n): m for n, m in numbers["forwards"].items()} == expected
    expected = ok.num_output_tokens.value_counts().to_dict()
    assert {int(n): m for n, m in numbers["output_tokens"].items()} == expected
    assert numbers["reasons"] == {"the prompt has N tokens, N fit": numbers["num_failed"]}
    assert numbers["full_passes"] == ok.full_passes.sum() < ok.num_forwards.sum()
    assert numbers["positions"] == ok.positions_computed.sum()
    assert numbers["num_unsure"] == (ok.max_entropy_at_stop > 0.5).sum()
    seen = text_of(page)
    assert f"{ok.num_forwards.mean():.1f} forward passes a row" in seen
    assert f"median {ok.num_forwards.median():.0f}" in seen
    assert f"{ok.num_output_tokens.mean():.1f} effective tokens a row" in seen
    assert f"{ok.positions_computed.mean():,.0f} positions computed a row" in seen
    share = ok.full_passes.sum() / ok.num_forwards.sum()
    assert f"{share:.0%} of passes went through prompt and canvas" in seen
    assert "kv_cache dual" in seen
    padding = 1 - ok.num_prompt_tokens.sum() / ok.bucket.sum()
    assert f"{padding:.1%} of all prompt positions" in seen


def test_the_summary_of_a_run_says_the_same(finished: tuple[Path, pd.DataFrame, str]) -> None:
    from pipeline.output.statistics import summarize

    folder, _, page = finished
    summary, numbers = summarize(Storage(str(folder))), data_of(page)["numbers"]
    assert summary.num_rows == numbers["num_rows"]
    assert summary.errors == numbers["reasons"]
    assert summary.stop_reasons == numbers["stops"]
    assert summary.num_positions == numbers["positions"]
    assert summary.num_unsure_stops == numbers["num_unsure"]


def test_curves_are_those_of_pandas(finished: tuple[Path, pd.DataFrame, str]) -> None:
    _, rows, page = finished
    ok = rows[rows.status == "ok"]
    decoding: dict[int, list[float]] = {}
    refining: dict[int, list[float]] = {}
    for row in ok.itertuples():
        for n, entropy in enumerate(row.entropy_trace, 1):
            phase = decoding if n in set(row.commit_step) else refining
            phase.setdefault(n, []).append(entropy)
    readings = dict(data_of(page)["charts"]["entropy"]["readings"])
    for name, phase in {"decoding": decoding, "refinement": refining}.items():
        for n, text in enumerate(readings[name], 1):
            values = phase.get(n, [])
            expected = f"{np.median(values):.3g}" if len(values) >= curves.MIN_ROWS else ""
            assert text == expected
    stopped = dict(data_of(page)["charts"]["stopped"]["readings"])
    shares = [f"{(ok.num_forwards <= n).mean():.1%}" for n in range(int(ok.num_forwards.max()) + 1)]
    assert stopped["together"] == shares
    refined = dict(data_of(page)["charts"]["refined"]["readings"])["converged"]
    first = np.array([steps.min() for steps in ok.commit_step])
    below = np.array([kl[n - 1] < 0.1 for kl, n in zip(ok.kl_trace, first, strict=True)])
    assert refined == [f"{(below & (first <= n)).mean():.1%}" for n in range(2, 2 + len(refined))]


@pytest.mark.parametrize(("monitor", "passes"), [("kl", [3, 4, 6]), ("change", [4, 6, 6])])
def test_refinement_that_converged_is_counted_by_the_runs_monitor(
    monitor: str, passes: list[int]
) -> None:
    """D_t, or its difference from the pass before; rows that refined to the limit never count."""
    rows, tau = [], 0.1
    kls = [[0.9, 0.05], [0.5, 0.45, 0.05], [0.9, 0.5, 0.3, 0.15, 0.08]]
    for kl, first in zip(kls, passes, strict=True):
        trace = np.array([np.nan, *kl, *([0.3] * 8)], np.float32)[:8]
        steps = np.arange(first, 9, dtype=np.int32)
        facts = {"decode_steps": len(steps), "refine_steps": first - 1, "blocks": 1}
        rows.append(Row(facts, np.zeros(len(steps), np.int32), trace, trace, steps))
    shares = curves.refined_by(rows, tau, monitor)
    values = [row.kl if monitor == "kl" else abs(row.kl - np.roll(row.kl, 1)) for row in rows]
    below = [bool(v[first - 1] < tau) for v, first in zip(values, passes, strict=True)]
    assert any(below)
    assert shares == {
        n: sum(b and first <= n for b, first in zip(below, passes, strict=True)) / 3
        for n in range(2, 7)
    }


def test_times_come_from_files_and_events(finished: tuple[Path, pd.DataFrame, str]) -> None:
    _, rows, page = finished
    chart = data_of(page)["charts"]["throughput"]
    assert chart["names"] == ["1 minutes", "2 minutes", "3 minutes"]
    assert dict(chart["readings"])["rows"] == ["40", "80", "100"]
    share = rows.seconds.sum() / (2 * 4 * 180)
    assert data_of(page)["numbers"]["occupancy"] == pytest.approx(share)
    assert f"{100 / 180:.2f} rows a second" in text_of(page)


def test_times_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    for path in (tmp_path / "run/data").iterdir():
        os.utime(path, (START.timestamp() + 9e5, START.timestamp() + 9e5))
    page = make_report(Storage(str(tmp_path / "run"))).html
    assert "throughput" not in data_of(page)["charts"]
    assert "do not lie within the run's events" in text_of(page)


def test_occupancy_is_not_guessed(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    events = [(0, "driver started"), (90, "replica died"), (180, "driver finished")]
    write_events(tmp_path / "run", events, error="out of memory")
    page = make_report(Storage(str(tmp_path / "run"))).html
    assert data_of(page)["numbers"]["occupancy"] is None
    assert "Slot occupancy is not known: replicas died" in text_of(page)


def test_samples_are_drawn_alike(tmp_path: Path, finished: tuple[Path, pd.DataFrame, str]) -> None:
    folder, rows, page = finished
    assert make_report(Storage(str(folder)), 30).html == page
    shown = data_of(page)["viewer"]["rows"]
    assert len(shown) == 30
    assert len({row["id"] for row in shown}) == 30
    most = rows.row_id[rows.num_forwards.idxmax()]
    assert {row["why"] for row in shown} == {"failed", "most passes", "random sample"}
    assert most in {row["id"] for row in shown}
    expected = dict(zip(rows.row_id, rows.commit_step, strict=True))
    for row in shown:
        if row["status"] == "ok":
            assert row["commit"] == expected[row["id"]].tolist()


def test_a_large_run_is_sampled_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "CURVE_ROWS", 20)
    rows = write_run(tmp_path / "run").to_pandas()
    page = make_report(Storage(str(tmp_path / "run")), 10).html
    num_ok = (rows.status == "ok").sum()
    assert f"Of 20 of {num_ok} decoded rows, those whose row_id has the smallest BLAKE2b" in page
    assert len(data_of(page)["viewer"]["rows"]) == 10
    assert "10 of 100 rows: the most passes, failed ones" in text_of(page)


def test_the_page_needs_nothing_else(finished: tuple[Path, pd.DataFrame, str]) -> None:
    page = finished[2]
    namespace = "http://www.w3.org/2000/svg"
    assert not re.search(r"(https?:)?//[a-z]", page.replace(namespace, ""))
    assert not re.search(r"<(link|img|iframe|script src|object|embed)\b|@import|url\(", page)
    assert "default-src 'none'" in page


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    write_run(tmp_path / "run", (20,), failed_every=4, output_text=ATTACK, question=ATTACK)
    write_run(tmp_path / "failed", (5,), failed_every=1, error=ATTACK)
    for name in ("run", "failed"):
        write_events(tmp_path / name, [(0, "driver started"), (60, ATTACK)], error=ATTACK)
        manifest = tmp_path / name / ".run/manifest.json"
        content = json.loads(manifest.read_text())
        content["settings"]["system_prompt"] = content["created"] = ATTACK
        content["settings"]["model"] = ATTACK
        manifest.write_text(json.dumps(content))
        page = make_report(Storage(str(tmp_path / name))).html
        assert "alert(1)" in page
        assert "<script>alert" not in page
        assert "<img" not in page
        assert page.count("</script>") == len(SCRIPTS) + 1
        assert "\u2028" not in page.partition('id="data">')[2]
    assert data_of(page)["viewer"]["rows"][0]["error"] == ATTACK


def test_tokens_are_the_runs_own(finished: tuple[Path, pd.DataFrame, str]) -> None:
    viewer = data_of(finished[2])["viewer"]
    row = next(row for row in viewer["rows"] if row["status"] == "ok")
    texts = [viewer["tokens"][str(index)] for index in row["ids"]]
    assert "".join(texts[: row["facts"]["num_output_tokens"]]) == row["text"]
    assert len(row["ids"]) == LENGTH


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("/no/where", "no such folder here"),
        ("some.package:model", "another package's model"),
        ("empty", "has no tokenizer files any more"),
        ("broken", "could not be loaded"),
        ("other", "is not the run's: it reads"),
    ],
)
def test_without_the_tokenizer_ids_are_shown(tmp_path: Path, model: str, reason: str) -> None:
    changes = {"output_text": "other words"} if model == "other" else {}
    write_run(tmp_path / "run", (10,), **changes)
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken/tokenizer.json").write_text("{}")
    manifest = tmp_path / "run/.run/manifest.json"
    content = json.loads(manifest.read_text())
    settings = content["settings"]
    settings["model"] = {"other": "tiny"}.get(model, model)
    if model in ("empty", "broken"):
        settings["model"] = str(tmp_path / model)
    manifest.write_text(json.dumps(content))
    page = make_report(Storage(str(tmp_path / "run"))).html
    assert data_of(page)["viewer"]["tokens"] == {}
    assert "Tokens are shown as ids" in text_of(page)
    assert reason in text_of(page)


def test_a_run_of_failures_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "run", (5, 5), failed_every=1)
    report = make_report(Storage(str(tmp_path / "run")))
    assert "No row was decoded" in text_of(report.html)
    assert "10 rows failed" in text_of(report.html)
    assert [figure.name for figure in report.figures] == ["throughput"]


def test_a_run_that_is_not_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", num_committed=2)
    lease = tmp_path / "run/.run/driver.json"
    at_work = {"host": "node-7", "time": "2026-01-02", "released": False}
    lease.write_text(json.dumps({**json.loads(lease.read_text()), **at_work}))
    with (tmp_path / "run/.run/events.jsonl").open("a") as events:
        events.write('{"time": "2026-01-02T03')
    assert call(str(tmp_path / "run")) == 0
    assert "not finished" in capsys.readouterr().out
    seen = text_of((tmp_path / "run/report.html").read_text())
    assert "not finished: 2 of 3 shards" in seen
    assert "80 of 100 rows are in committed shards" in seen
    assert "The last heartbeat of the driver on node-7 was at 2026-01-02" in seen
    assert "Lines of events.jsonl that are unreadable and left out: 1." in seen


def test_a_schedule_that_hides_its_phases(tmp_path: Path) -> None:
    """Decode passes that commit nothing: no phase is invented."""
    write_run(tmp_path / "run", (30,), decode_steps=999)
    charts = data_of(make_report(Storage(str(tmp_path / "run"))).html)["charts"]
    names = [name for name, _ in charts["kl"]["readings"]]
    assert names[0] == "phase not known"
    assert "decoding" not in names


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda run: shutil.rmtree(run), "no such folder"),
        (lambda run: (shutil.rmtree(run), run.write_text("x")), "is a file"),
        (lambda run: (run / ".run/manifest.json").unlink(), "run: holds no run"),
        (lambda run: shutil.rmtree(run / "data"), "no committed shards yet"),
        (lambda run: next((run / "data").iterdir()).write_bytes(b"PAR1"), "00000-of-00003"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], break_it: Any, expected: str
) -> None:
    write_run(tmp_path / "run")
    shards = sorted((tmp_path / "run/data").iterdir())
    for path in shards[1:]:
        if "of-00003" in expected:
            path.unlink()
    break_it(tmp_path / "run")
    assert expected in refused(capsys, str(tmp_path / "run"), "--output", str(tmp_path / "a.html"))
    assert not (tmp_path / "a.html").exists()


def test_rows_must_be_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run")
    assert "--rows is 0" in refused(capsys, str(tmp_path / "run"), "--rows", "0")


def test_the_command_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs import cli

    write_run(tmp_path / "run", (10,))
    monkeypatch.setattr("sys.argv", ["lrd", "report", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 0
    assert (tmp_path / "run/report.html").is_file()


def test_figures_are_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run")
    output, folder = tmp_path / "page.html", tmp_path / "figures"
    assert call(str(tmp_path / "run"), "--output", str(output), "--export", str(folder)) == 0
    names = {path.stem for path in folder.glob("*.svg")}
    assert names >= {"kl", "entropy", "stopped", "refined", "committed", "forwards", "tokens"}
    for path in folder.glob("*.svg"):
        drawing = path.read_text()
        ElementTree.fromstring(drawing)
        assert "var(--" not in drawing
        assert "nan" not in drawing
    printed = capsys.readouterr().out
    if job.has_png():
        assert {path.stem for path in folder.glob("*.png")} == names
        assert all(path.read_bytes()[:4] == b"\x89PNG" for path in folder.glob("*.png"))
    else:
        assert "lrd-pipeline[report]" in printed


SCRIPT = """
<script>
const seen = {};
window.onerror = (message) => { seen.error = message; };
const part = (name) => document.querySelector(`[data-part=${name}]`);
const open = () => document.querySelectorAll(".cell.open").length;
const press = (key) => document.getElementById("sample").dispatchEvent(
  new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
seen.first = [Number(part("slider").value), open()];
press("ArrowRight");
seen.next = [Number(part("slider").value), open()];
press("Home");
seen.home = [Number(part("slider").value), open()];
press("End");
seen.end = [Number(part("slider").value), open()];
part("slider").value = 3;
part("slider").dispatchEvent(new Event("input"));
seen.slid = [3, open()];
const charts = [...document.querySelectorAll("svg[data-chart]")];
seen.plots = charts.map((svg) => svg.getBoundingClientRect().width > 200);
seen.traces = part("kl").querySelectorAll("polyline").length;
part("search").value = "00000-0000000";
part("search").dispatchEvent(new Event("input"));
seen.found = part("list").children.length;
const svg = document.querySelector("svg[data-chart=kl]");
const box = svg.getBoundingClientRect();
const at = { clientX: box.left + box.width / 2, clientY: box.top + 50 };
svg.dispatchEvent(new PointerEvent("pointermove", at));
seen.tip = document.querySelector(".tip").textContent;
part("play").click();
setTimeout(() => {
  seen.played = Number(part("slider").value) > 3;
  document.documentElement.setAttribute("data-seen", JSON.stringify(seen));
}, 4000);
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian's package `chromium`)")
def test_a_browser_replays_a_sample(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    rows = write_run(tmp_path / "run", (30, 10), question=ATTACK).to_pandas()
    row = rows[rows.status == "ok"].iloc[0]
    page = make_report(Storage(str(tmp_path / "run"))).html
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", f"{SCRIPT}</body>"), encoding="utf-8")
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *("--virtual-time-budget=8000", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--dump-dom", f"file://{file}#row={row.row_id}&pass=6"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found is not None
    seen = json.loads(html.unescape(found.group(1)))

    def num_open(passes: int) -> int:
        return int((row.commit_step > passes).sum())

    assert "error" not in seen
    assert seen["first"] == [6, num_open(6)]
    assert seen["next"] == [7, num_open(7)]
    assert seen["home"] == [0, LENGTH]
    assert seen["end"] == [row.num_forwards, 0]
    assert seen["slid"] == [3, num_open(3)]
    assert seen["plots"] == [True] * 9
    assert seen["traces"] >= 1
    assert seen["found"] == 10
    assert "decoding" in seen["tip"]
    assert seen["played"]
    assert "alert(1)" in done.stdout
    assert "<script>alert" not in done.stdout
    assert "<img" not in done.stdout
