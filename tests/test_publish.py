"""Publishing a run: the hub's layout, the card, what is refused, the push."""

from __future__ import annotations

import argparse
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.runs import MadeRun
from markdown_it import MarkdownIt

from jobs import publish as job
from pipeline.markdown import code, escaped, table
from pipeline.publishing.dataset_card import About, Facts, _last_part, card
from pipeline.publishing.destinations import destination
from pipeline.rows import MEANINGS, RESULT_SCHEMA, Layout

SECRET = "hf_a-token-that-nobody-may-see"


def finished(tmp_path: Path, failed: tuple[int, ...] = (2,)) -> MadeRun:
    """A whole run of three shards of four rows, of which these fail in the second shard."""
    made = MadeRun(tmp_path / "run").begin()
    for number in range(made.num_shards):
        made.add(number, range(made.num_rows), failed if number == 1 else ())
    return made.end()


def publish(output: Path, to: Path | str, *flags: str) -> int:
    parser = argparse.ArgumentParser()
    job.add_arguments(parser)
    return job.run(parser.parse_args([str(output), "--to", str(to), *flags]))


def load(folder: Path, cache: Path, *config: str, split: str) -> Any:
    return datasets.load_dataset(str(folder), *config, split=split, cache_dir=str(cache))


def header(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    return found


def score(made: MadeRun) -> None:
    """Scores as `lrd evaluate` leaves them."""
    evaluation = {
        "task": "gsm8k",
        "num_rows": 12,
        "num_correct": 9,
        "accuracy": 0.75,
        "accuracy_low": 0.468,
        "accuracy_high": 0.911,
    }
    table = pa.table({"row_id": ["00000-00000000"]})
    table = table.replace_schema_metadata({"lrd.evaluation": json.dumps(evaluation)})
    (made.output / ".scores").mkdir()
    pq.write_table(table, made.output / ".scores" / "gsm8k.parquet")


def test_good_rows_and_failed_ones_load_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = finished(tmp_path)
    score(made)
    folder = tmp_path / "published"
    assert publish(made.output, folder, "--license", "cc-by-4.0", "--tag", "math") == 0
    rows = load(folder, tmp_path / "cache", split="train")
    failed = load(folder, tmp_path / "cache", "failed", split="failed")
    assert (rows.num_rows, failed.num_rows) == (11, 1)
    assert set(rows["status"]) == {"ok"}
    assert failed["error"] == ["non-finite logits in pass 1"]
    assert rows.column_names == failed.column_names == ["prompt", "weight", *Layout().schema.names]
    before = pd.read_parquet(made.output / "data")
    after = pd.read_parquet(folder / "data")
    assert after["row_id"].tolist() == before[before["status"] == "ok"]["row_id"].tolist()
    about = header(folder)
    assert about["license"] == "cc-by-4.0"
    assert about["size_categories"] == ["n<1K"]
    assert {"math", "latent-refinement-decoding"} <= set(about["tags"])
    text = (folder / "README.md").read_text()
    assert "| `gsm8k` | 9 of 12 | 75.0% | 46.8% to 91.1% |" in text
    assert "11 answers of the diffusion language model `m`" in text
    assert str(tmp_path) not in text
    assert "11 rows, 1 failed" in capsys.readouterr().out


def test_whole_shards_are_not_copied(tmp_path: Path) -> None:
    made = finished(tmp_path)
    folder = tmp_path / "published"
    assert publish(made.output, folder) == 0
    names = [path.name for path in sorted((folder / "data").iterdir())]
    assert names == [f"train-{number:05d}-of-00003.parquet" for number in range(3)]
    same = [(folder / "data" / name).samefile(made.output / "data" / name) for name in names]
    assert same == [True, False, True]
    (failures,) = (folder / "failed").iterdir()
    assert failures.name == "failed-00001-of-00003.parquet"
    assert b"lrd.fingerprint" in pq.read_metadata(failures).metadata
    assert not list(tmp_path.glob("*.part"))


def test_shards_are_copied_where_they_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = finished(tmp_path, failed=())

    def refuse(*_: Any) -> None:
        raise OSError("another filesystem")

    monkeypatch.setattr(os, "link", refuse)
    assert publish(made.output, tmp_path / "published") == 0
    for path in (made.output / "data").iterdir():
        assert (tmp_path / "published" / "data" / path.name).read_bytes() == path.read_bytes()
    assert [c["config_name"] for c in header(tmp_path / "published")["configs"]] == ["default"]


def test_a_shard_without_a_good_row(tmp_path: Path) -> None:
    made = finished(tmp_path, failed=(0, 1, 2, 3))
    folder = tmp_path / "published"
    assert publish(made.output, folder) == 0
    assert load(folder, tmp_path / "cache", split="train").num_rows == 8
    assert load(folder, tmp_path / "cache", "failed", split="failed").num_rows == 4


def test_a_run_without_a_good_row(tmp_path: Path) -> None:
    made = MadeRun(tmp_path / "run").begin().whole(failed=range(4)).end()
    folder = tmp_path / "published"
    assert publish(made.output, folder) == 0
    assert [config["config_name"] for config in header(folder)["configs"]] == ["failed"]
    assert load(folder, tmp_path / "cache", "failed", split="failed").num_rows == 12


def test_an_unfinished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = MadeRun(tmp_path / "run").begin()
    assert publish(made.output, tmp_path / "published") == 2
    assert "0 of 3 shards" in capsys.readouterr().err
    made.add(0, range(4))
    made.add(1, range(2))
    made.end()
    assert publish(made.output, tmp_path / "published") == 2
    assert "1 of 3 shards are finished" in capsys.readouterr().err
    assert not (tmp_path / "published").exists()
    assert publish(made.output, tmp_path / "published", "--partial") == 0
    assert "**Not finished**: 1 of 3 shards" in (tmp_path / "published/README.md").read_text()
    assert load(tmp_path / "published", tmp_path / "cache", split="train").num_rows == 4


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = finished(tmp_path)

    def refused(to: Path | str, *flags: str, output: Path = made.output) -> str:
        assert publish(output, to, *flags) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert len(printed.err.splitlines()) == 1
        return printed.err

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "exists already" in refused(tmp_path / "full")
    assert "is in the run" in refused(made.output / "published")
    assert "holds no run" in refused(tmp_path / "published", output=tmp_path / "full")
    assert "not a licence id" in refused(tmp_path / "published", "--license", "mit\nconfigs: []")
    assert "is not a title" in refused(tmp_path / "published", "--title", "a\n---\nb")
    assert "is not a tag" in refused(tmp_path / "published", "--tag", "- x")
    assert "nowhere://bucket/published: no filesystem" in refused("nowhere://bucket/published")
    content = made.shard(1).read_bytes()
    made.shard(1).write_bytes(content[:-1] + b"x")
    assert "its bytes are not those of its record" in refused(tmp_path / "published")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "run"]


def test_a_name_that_is_both_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def hub_id(to: str) -> str | None:
        return getattr(destination(to, public=False), "keywords", {}).get("hub_id")

    assert hub_id("owner/name") == "owner/name"
    assert hub_id("hf://datasets/owner/name") == "owner/name"
    for folder in ("./owner/name", "published", f"file://{tmp_path}/published"):
        assert destination(folder, public=False) is None
    (tmp_path / "owner").mkdir()
    with pytest.raises(ValueError, match=r"write \./owner/name"):
        hub_id("owner/name")


HOSTILE = (
    "<script>alert(1)</script> | `</td>` [x](javascript:alert(1)) ![i](http://evil/i.png) **b** "
    "@everyone\n\n---\n# head\n| a | b |\n```\n"
    "\u202egnp.exe\u2066 &lt;img src=x onerror=alert(1)&gt;"
)


def rendered(text: str) -> str:
    """As a page that lets raw HTML through."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


def test_a_bar_or_a_break_ends_no_cell() -> None:
    page = rendered(table(["a", "b"], [["x | y\nz", 1]]))
    assert re.findall(r"<td>(.*)</td>", page) == ["x | y z", "1"]


def test_no_text_becomes_markup() -> None:
    for write in (escaped, code):
        page = rendered(f"| a | b |\n|---|---|\n| {write(HOSTILE)} | end |\n")
        assert page.count("<td>") == 2
        tags = set(re.findall(r"</?([a-z0-9]+)", page))
        assert tags <= {"table", "thead", "tbody", "tr", "th", "td"}
        assert "alert(1)" in page
        assert "&amp;lt;img" in page, "an entity in a text stands there as it was written"
        assert not set("\u202e\u2066") & set(page)
    assert code("output_text") == "`output_text`"
    assert rendered(escaped("a_b * <c> \\ 文字 é")) == "<p>a_b * &lt;c&gt; \\ 文字 é</p>\n"


def test_a_card_of_hostile_names(tmp_path: Path) -> None:
    """Column names, field names, settings, reasons, file names: all of them others' text."""
    schema = pa.schema([(HOSTILE, pa.struct([(HOSTILE, pa.string())])), *RESULT_SCHEMA])
    facts = Facts(
        manifest={
            "created": HOSTILE,
            "settings": {"model": HOSTILE, "system_prompt": HOSTILE, "prompt_column": HOSTILE},
            "fingerprint": {
                "version": HOSTILE,
                "model": HOSTILE,
                "dtype": HOSTILE,
                "input": {HOSTILE: HOSTILE},
                "decoding": {HOSTILE: HOSTILE},
            },
        },
        schema=schema,
        num_shards=1,
        num_shards_planned=2,
        num_ok=1,
        num_failed=1,
        num_forwards=1,
        most_forwards=1,
        num_positions=1,
        num_output_tokens=1,
        stop_reasons={HOSTILE: 1},
        errors={HOSTILE: 1},
        evaluations=[
            {
                "task": HOSTILE,
                "num_correct": 1,
                "num_rows": 1,
                "accuracy": 1.0,
                "accuracy_low": 0.2,
                "accuracy_high": 1.0,
                "samples": None,
            }
        ],
    )
    written = card(facts, About(title="<b>*title*</b> --- #"))
    _, front, body = re.split(r"^---$", written, maxsplit=2, flags=re.M)
    assert yaml.safe_load(front)["pretty_name"] == "<b>*title*</b> --- #"
    page = rendered(body)
    ours = ["table", "thead", "tbody", "tr", "th", "td", "h1", "h2", "p", "code", "strong", "a"]
    assert set(re.findall(r"</?([a-z0-9]+)", page)) == set(ours)
    assert re.findall(r'href="([^"]*)"', page) == ["https://arxiv.org/abs/2510.11052"]
    assert page.count("<h1>") == 1
    assert page.count("<h2>") == 6
    assert page.count("<tr>") == page.count("</tr>")


def test_the_card_has_every_columns_meaning(tmp_path: Path) -> None:
    assert publish(finished(tmp_path).output, tmp_path / "published") == 0
    text = (tmp_path / "published" / "README.md").read_text()
    for name in Layout().schema.names:
        meaning = MEANINGS[name]
        assert re.search(rf"^\| `{name}` \| .+ \| {re.escape(meaning)} \|$", text, re.MULTILINE)


def test_a_path_of_this_machine_stays_off_the_card() -> None:
    for model in ("/home/someone/llada/", "./llada", "s3://bucket/key/llada", "a/b/llada"):
        assert _last_part(model) == "llada"
    assert _last_part("owner/llada") == "owner/llada"


@pytest.fixture
def hub() -> Iterator[dict[str, Any]]:
    """A hub on this machine that takes commits of small files; every request is noted."""
    state: dict[str, Any] = {"asked": [], "tokens": set(), "files": {}, "refuse": False}

    class Hub(http.server.BaseHTTPRequestHandler):
        def answer(self, about: Any, status: int = 200) -> None:
            body = json.dumps(about).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state["asked"].append((self.command, self.path, body))
            state["tokens"].add(self.headers.get("Authorization"))
            if state["refuse"]:
                self.answer({"error": "Invalid credentials"}, 401)
            elif self.path == "/api/repos/create":
                self.answer({"url": f"{state['url']}/datasets/some/rows", "id": "some/rows"})
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                keep = {"uploadMode": "regular", "shouldIgnore": False}
                self.answer({"files": [{"path": f["path"], **keep} for f in files]})
            elif "/tree/" in self.path:
                old = {"type": "file", "path": "data/train-00000-of-00001.parquet"}
                self.answer([{**old, "size": 1, "oid": "0" * 40}])
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    state["files"][line["value"].get("path")] = line["key"]
                url = f"{state['url']}/datasets/some/rows/commit/{'a' * 40}"
                self.answer({"success": True, "commitOid": "a" * 40, "commitUrl": url})
            else:
                self.answer({"id": "some/rows", "sha": "a" * 40, "siblings": []})

        do_GET = do_POST = do_HEAD = handle_request

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state["url"] = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()


def push(hub: dict[str, Any], output: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """huggingface_hub reads its environment at import: hence a process."""
    words = ["publish", str(output), "--to", "some/rows", *flags]
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub["url"],
        "HF_TOKEN": SECRET,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    return subprocess.run(
        [sys.executable, "-c", "from jobs.cli import main; main()", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_pushing_to_the_hub(tmp_path: Path, hub: dict[str, Any]) -> None:
    made = finished(tmp_path)
    ran = push(hub, made.output, "--license", "mit")
    assert ran.returncode == 0, ran.stderr
    assert f"{hub['url']}/datasets/some/rows" in ran.stdout
    (created,) = [json.loads(b) for _, path, b in hub["asked"] if path == "/api/repos/create"]
    assert (created["type"], created["name"]) == ("dataset", "rows")
    assert created.get("visibility", created.get("private")) in ("private", True)
    kinds = {path: kind for path, kind in hub["files"].items() if path}
    assert kinds["data/train-00000-of-00001.parquet"] == "deletedFile", "an older one's shard"
    assert {path for path, kind in kinds.items() if kind == "file"} == {
        "README.md",
        "failed/failed-00001-of-00003.parquet",
        *(f"data/train-{number:05d}-of-00003.parquet" for number in range(3)),
    }
    assert hub["tokens"] == {f"Bearer {SECRET}"}
    assert SECRET not in ran.stdout + ran.stderr
    assert not list(made.output.parent.glob(".lrd-publish-*"))


def test_a_hub_that_refuses(tmp_path: Path, hub: dict[str, Any]) -> None:
    hub["refuse"] = True
    ran = push(hub, finished(tmp_path).output)
    assert ran.returncode == 75
    (line,) = [text for text in ran.stderr.splitlines() if text.startswith("lrd publish")]
    assert "the hub did not take it" in line
    assert "HF_TOKEN" in line
    assert SECRET not in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
