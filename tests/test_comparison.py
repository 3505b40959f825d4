"""`lrd report A B`: which rows are compared and how they differ, by hand; the page in a browser."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.runs import MadeRun, with_column
from helpers.synthetic_run import LENGTH, write_run
from test_report import ATTACK, CHROMIUM, call, data_of, refused, text_of
from test_speed import ONE, write_course

from jobs import evaluate
from pipeline.report.comparison import SCRIPTS, make_comparison
from pipeline.report.pairs import DIFFER, ONE_FAILED, SAME
from pipeline.rows import Layout
from pipeline.storage.storage import Storage


def compared(a: Path, b: Path, num_rows: int = 50, price: float | None = None) -> Any:
    return make_comparison((Storage(str(a)), Storage(str(b))), num_rows, price)


def two_runs(tmp_path: Path) -> tuple[MadeRun, MadeRun]:
    """Two shards of four rows each. B answers row 1 otherwise and faster; its row 2 failed; its
    prompt of row 3 is another. Of the second shard A's rows 0 and 1 failed, B's row 1 too."""
    a = MadeRun(tmp_path / "a", num_shards=2).begin()
    b = MadeRun(tmp_path / "b", num_shards=2).begin()
    a.add(0, range(4))
    a.add(1, range(4), failed=[0, 1])
    b.add(0, range(4), failed=[2])
    b.add(1, range(4), failed=[1])
    for run in (a, b):
        run.end()

    def change(table: pa.Table) -> pa.Table:
        texts = table["output_text"].to_pylist()
        table = with_column(table, "output_text", [texts[0], "other words", None, texts[3]])
        table = with_column(table, "num_forwards", [3, 2, None, 3])
        for name in ("kl_trace", "entropy_trace"):
            values = table[name].to_pylist()
            table = with_column(
                table, name, [v and v[: 2 if n == 1 else 3] for n, v in enumerate(values)]
            )
        table = with_column(table, "commit_step", [[1, 2, 3], [1, 2, 2], None, [1, 2, 3]])
        return with_column(table, "prompt", ["prompt 0 0", "prompt 0 1", "prompt 0 2", "new"])

    b.rewrite(0, change)
    return a, b


def test_rows_are_counted_by_hand(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    found = compared(a.output, b.output)
    pairs = found.pairs
    assert pairs.num_other_prompts == 1
    assert pairs.num_same == 3  # 0-0, 1-2, 1-3
    assert pairs.num_differing == 1  # 0-1
    assert pairs.ok_alone == [1, 1]  # 0-2, 1-0
    assert pairs.num_failed == 1  # 1-1
    assert pairs.num_compared == 7
    assert pairs.fewer == [0, 1]
    assert pairs.only == [0, 0]
    viewer = data_of(found.html)["pairs"]
    shown = {row["id"]: (row["why"], row["prompt"]) for row in viewer["rows"]}
    assert shown == {
        "00000-00000001": (DIFFER, "prompt 0 1"),
        "00000-00000002": (ONE_FAILED, "prompt 0 2"),
        "00001-00000000": (ONE_FAILED, "prompt 1 0"),
        "00000-00000000": (SAME, "prompt 0 0"),
        "00001-00000002": (SAME, "prompt 1 2"),
        "00001-00000003": (SAME, "prompt 1 3"),
    }
    first = viewer["rows"][0]
    assert first["id"] == "00000-00000001", "rows that differ come first"
    assert [side["text"] for side in first["sides"]] == ["answer 1", "other words"]
    assert [side["commit"] for side in first["sides"]] == [[1, 2, 3], [1, 2, 2]]
    seen = text_of(found.html)
    assert "3 of 7 rows differ" in seen
    for words in (
        *("other answer 1", "decoded in A, failed in B 1", "failed in A, decoded in B 1"),
        *("same answer 3", "failed in both 1", "fewer passes in B 1"),
        *("not compared: the prompt is another 1", "only in A 0"),
    ):
        assert words in seen


def test_the_other_way_round_is_the_mirror(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    there, back = compared(a.output, b.output).pairs, compared(b.output, a.output).pairs
    assert back.num_compared == there.num_compared
    assert (back.ok_alone, back.fewer) == (there.ok_alone[::-1], there.fewer[::-1])


def test_rows_of_one_run_alone_are_counted(tmp_path: Path) -> None:
    a = MadeRun(tmp_path / "a", num_shards=3).begin().whole().end()
    b = MadeRun(tmp_path / "b", num_shards=3).begin()
    b.add(1, range(4))
    b.end()
    found = compared(a.output, b.output)
    assert found.pairs.only == [8, 0]
    assert found.pairs.num_same == 4
    assert "B is not finished: 1 of 3 shards" in text_of(found.html)
    assert "all 4 rows are equal" in text_of(found.html)
    assert compared(b.output, a.output).pairs.only == [0, 8]


def test_chosen_rows_prefer_those_that_differ(tmp_path: Path) -> None:
    write_run(tmp_path / "a", (60,), failed_every=99)
    write_run(tmp_path / "b", (60,), failed_every=99,
              output_text=lambda n: "x" if n % 2 else "y")  # fmt: skip
    whole = compared(tmp_path / "a", tmp_path / "b", 1000)
    assert whole.pairs.num_differing == 60
    assert len(data_of(whole.html)["pairs"]["rows"]) == 60
    few = compared(tmp_path / "a", tmp_path / "b", 7)
    assert len(data_of(few.html)["pairs"]["rows"]) == 7
    assert few.html == compared(tmp_path / "a", tmp_path / "b", 7).html, "the same rows again"
    mixed = compared(tmp_path / "a", tmp_path / "a", 7)
    assert {row["why"] for row in data_of(mixed.html)["pairs"]["rows"]} == {SAME}


@pytest.mark.parametrize("level", ["minimal", "standard", "full"])
def test_every_level_of_columns(level: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "a", (9,))
    write_run(tmp_path / "b", (9,), failed_every=4, layout=Layout(1, level))
    page = compared(tmp_path / "a", tmp_path / "b").html
    numbers = data_of(page)["numbers"]
    assert numbers["compared"] == 9
    known = numbers["figures"]["positions a row, mean"]
    assert (known[1] is None) == (level == "minimal")
    if level == "minimal":
        assert "B: Not known: seconds a row, since the run keeps minimal columns" in text_of(page)


def test_figures_are_those_of_each_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    rows = write_run(a, answer=lambda n: str(n)).to_pandas()
    write_run(b, seed=0, failed_every=10, num_forwards=None, answer=lambda n: str(n))
    for folder in (a, b):
        write_course(folder, ONE)
    import argparse

    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    for folder in (a, b):
        assert evaluate.run(parser.parse_args([str(folder), "--task", "word-problems"])) == 0
    capsys.readouterr()
    assert call(str(a), str(b), "--price-per-gpu-hour", "36") == 0
    printed = capsys.readouterr().out
    page = (a / "comparison.html").read_text()
    figures = data_of(page)["numbers"]["figures"]
    ok = rows[rows.status == "ok"]
    assert figures["rows"] == [100, 100]
    assert figures["failed rows"] == [5, 10]
    assert figures["passes a row, mean"][0] == pytest.approx(ok.num_forwards.mean())
    assert figures["cost"] == pytest.approx([1.0, 1.0])
    assert figures["cost of a thousand rows"] == pytest.approx([1000 / 95, 1000 / 90])
    tokens = ok.num_output_tokens.sum()
    assert figures["effective tokens/s a replica"][0] == pytest.approx(tokens / 170)
    assert figures["time not in passes"] == pytest.approx([1 - 119 / 170] * 2)
    scores = [pq.read_table(f / ".scores/word-problems.parquet").to_pylist() for f in (a, b)]
    rights = [[row["correct"] for row in of] for of in scores]
    assert figures["accuracy, word-problems"] == pytest.approx([sum(r) / 100 for r in rights])
    both = list(zip(*rights, strict=True))
    expected = [both.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0))]
    assert data_of(page)["numbers"]["right"] == {"word-problems": expected}
    assert f"right in A alone {expected[1]}" in text_of(page)
    assert f"word-problems: {expected[1]} rows right in A alone, {expected[2]} in B" in printed
    assert "100 rows compared" in printed
    # Scores of rows that were decoded anew are left out, with the reason.
    (b / ".scores/word-problems.parquet").write_bytes(
        (a / ".scores/word-problems.parquet").read_bytes()
    )
    page = compared(a, b).html
    assert data_of(page)["numbers"]["right"] == {}
    assert "Scores are not compared row by row" in text_of(page)


def test_settings_and_machines_that_differ_are_named(tmp_path: Path) -> None:
    for name, length in (("a", 1), ("b", 2)):
        write_run(tmp_path / name, (4,))
        manifest = tmp_path / name / ".run/manifest.json"
        content = json.loads(manifest.read_text())
        content["settings"]["decoding"]["r_f"] = length / 10
        manifest.write_text(json.dumps(content))
        up = {"replica": "a", "environment": {"device": f"gpu {length}", "torch": "2.9"}}
        write_course(tmp_path / name, [*ONE[:1], (1, "replica up", up), ONE[-1]])
    seen = text_of(compared(tmp_path / "a", tmp_path / "b").html)
    assert "r_f 0.1 0.2" in seen
    assert "gen_length" not in seen.partition("Settings that differ name")[2]
    assert "not computed by the same machines (A to B: device was gpu 1, is gpu 2)" in seen


def test_runs_without_a_common_row_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", (4,), failed_every=99)
    MadeRun(tmp_path / "b", num_shards=1).begin().whole().end()
    line = refused(capsys, str(tmp_path / "a"), str(tmp_path / "b/out"))
    assert "no row has the same row_id and prompt in both" in line
    assert not (tmp_path / "a/comparison.html").exists()
    assert "no such folder" in refused(capsys, str(tmp_path / "a"), str(tmp_path / "none"))


def test_rows_out_of_order_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = MadeRun(tmp_path / "a", num_shards=1).begin().whole().end()
    b = MadeRun(tmp_path / "b", num_shards=1).begin().whole().end()
    b.rewrite(0, lambda table: table.take(pa.array([1, 0, 2, 3])))
    line = refused(capsys, str(a.output), str(b.output))
    assert "row 00000-00000000 is not in the order of row ids" in line


def test_the_figure_is_exported(tmp_path: Path) -> None:
    write_run(tmp_path / "a", (9,))
    write_run(tmp_path / "b", (9,), failed_every=4)
    target = tmp_path / "page.html"
    words = (str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(target))
    assert call(*words, "--export", str(tmp_path / "figures")) == 0
    assert (tmp_path / "figures/stopped.svg").is_file()
    assert target.is_file()
    assert not (tmp_path / "a/comparison.html").exists()


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    for name, every in (("a", 4), ("b", 3)):
        write_run(tmp_path / name, (12,), failed_every=every, output_text=ATTACK, question=ATTACK,
                  error=ATTACK)  # fmt: skip
        manifest = tmp_path / name / ".run/manifest.json"
        content = json.loads(manifest.read_text())
        content["settings"]["system_prompt"] = ATTACK + name
        manifest.write_text(json.dumps(content))
    page = compared(tmp_path / "a", tmp_path / "b").html
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<img" not in page
    assert page.count("</script>") == len(SCRIPTS) + 1


SCRIPT = """
<script>
const seen = {};
window.onerror = (message) => { seen.error = message; };
const part = (name) => document.querySelector(`[data-part=${name}]`);
const halves = () => [...document.querySelectorAll(".half")];
const open = () => halves().map((half) => half.querySelectorAll(".cell.open").length);
const press = (key) => document.getElementById("sample").dispatchEvent(
  new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
seen.first = [Number(part("slider").value), ...open()];
press("ArrowRight");
seen.next = [Number(part("slider").value), ...open()];
press("Home");
seen.home = [Number(part("slider").value), ...open()];
press("End");
seen.end = [Number(part("slider").value), ...open()];
seen.other = halves().map((half) => half.querySelectorAll(".cell.other").length);
seen.beside = halves().map((half) => half.getBoundingClientRect().left);
seen.wide = document.documentElement.scrollWidth <= window.innerWidth;
seen.rows = part("list").children.length;
part("which").value = "failed in one";
part("which").dispatchEvent(new Event("input"));
seen.failed = part("list").children.length;
part("list").children[0].click();
seen.error_shown = halves().map((half) => half.querySelectorAll(".error").length);
part("play").click();
setTimeout(() => {
  seen.played = Number(part("slider").value) > 0;
  document.documentElement.setAttribute("data-seen", JSON.stringify(seen));
}, 4000);
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian's package `chromium`)")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_replays_both_canvases(width: int, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    a = write_run(tmp_path / "a", (30,), failed_every=10).to_pylist()
    b = write_run(tmp_path / "b", (30,), failed_every=7).to_pylist()
    numbers = [
        n for n, pair in enumerate(zip(a, b, strict=True))
        if all(row["status"] == "ok" for row in pair)
        and pair[0]["output_token_ids"] != pair[1]["output_token_ids"]
    ]  # fmt: skip
    rows = [run[numbers[0]] for run in (a, b)]
    file = tmp_path / "page.html"
    page = compared(tmp_path / "a", tmp_path / "b").html
    file.write_text(page.replace("</body>", f"{SCRIPT}</body>"), encoding="utf-8")
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *("--virtual-time-budget=8000", f"--user-data-dir={tmp_path / 'profile'}"),
            *(f"--window-size={width},900", "--dump-dom"),
            f"file://{file}#row={rows[0]['row_id']}&pass=6",
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

    def num_open(passes: int) -> list[int]:
        return [sum(step > passes for step in row["commit_step"]) for row in rows]

    assert "error" not in seen
    assert seen["first"] == [6, *num_open(6)]
    assert seen["next"] == [7, *num_open(7)]
    assert seen["home"] == [0, LENGTH, LENGTH]
    assert seen["end"] == [max(row["num_forwards"] for row in rows), 0, 0]
    ids = [row["output_token_ids"] for row in rows]
    assert seen["other"] == [sum(x != y for x, y in zip(*ids, strict=True))] * 2
    assert (seen["beside"][0] < seen["beside"][1]) == (width > 1000)
    assert seen["wide"]
    failed = sum((x["status"] == "ok") != (y["status"] == "ok") for x, y in zip(a, b, strict=True))
    assert seen["rows"] == 30 - sum(
        x["status"] == y["status"] == "failed" for x, y in zip(a, b, strict=True)
    )
    assert seen["failed"] == failed
    assert sorted(seen["error_shown"]) == [0, 1]
    assert seen["played"]
