"""What the READMEs tell users to type, typed: the tour's commands, then the pandas session."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import matplotlib as mpl
import pandas as pd
import pytest
from helpers.kept_replicas import keeping
from helpers.readme_blocks import ROOT, blocks
from helpers.shards import shorten

from jobs import cli

mpl.use("Agg")


@pytest.fixture
def kept(no_ray: None) -> Iterator[None]:
    """A session of Ray that the first command starts, and replicas that serve all commands."""
    with keeping():
        yield


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("kept")
def test_settings_a_row_and_canvases_that_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chapter = "Settings a row, and canvases that grow"
    monkeypatch.chdir(tmp_path)
    (rows,) = blocks("pipeline/README.md", chapter, "json")
    Path("rows.jsonl").write_text(rows)
    (commands,) = blocks("pipeline/README.md", chapter, "bash")
    called = []
    for line in commands.splitlines():
        call = shlex.split(line, comments=True)
        called.append(call[1])
        monkeypatch.setattr(sys, "argv", call)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0, f"{line}: {capsys.readouterr().err}"
    assert called == ["prepare", "plan", "generate", "verify", "generate", "verify"]
    own, fitting = (pd.read_parquet(f"{name}/data") for name in ("own", "fitting"))
    assert own["canvas_length"].tolist() == [32, 64, 128]
    assert set(fitting["canvas_length"]) <= {64, 128, 256}
    assert (pd.concat([own, fitting])["status"] == "ok").all()


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("kept")
def test_answers_of_a_fixed_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chapter = "Answers of a fixed form"
    monkeypatch.chdir(tmp_path)
    files = blocks("pipeline/README.md", chapter, "json")
    for name, content in zip(("ask.jsonl", "gaps.jsonl", "person.json"), files, strict=True):
        Path(name).write_text(content)
    (template,) = blocks("pipeline/README.md", chapter, "text")
    Path("answer.txt").write_text(template)
    (commands,) = blocks("pipeline/README.md", chapter, "bash")
    for line in commands.splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0, f"{line}: {capsys.readouterr().err}"
    one, own, answers, filled = (
        pd.read_parquet(f"{name}/data") for name in ("one", "own", "json", "filled")
    )
    assert one["output_text"].str.fullmatch("The answer is .*\\.", flags=re.DOTALL).all()
    assert own["output_text"][0].startswith("Tom has ")
    assert own["output_text"][1].startswith("#### ")
    schema = json.loads(files[2])
    for text in answers["output_json"]:
        jsonschema.validate(json.loads(text), schema)
    assert filled["output_text"][0].endswith(" apples and buys 4. Now he has 7.")


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("num_rows", [128, pytest.param(512, marks=pytest.mark.slow)])
def test_the_tour_and_the_pandas_session(
    num_rows: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = tmp_path / "jobs" / "examples"
    shutil.copytree(ROOT / "jobs" / "examples", examples)
    shorten(examples, num_rows)
    (tmp_path / "runs").mkdir()
    (tour,) = blocks("README.md", "The tour, five minutes", "bash")
    lines = [shlex.split(line, comments=True) for line in tour.splitlines()]
    assert [line[1] for line in lines] == [
        *("prepare", "plan", "generate", "status", "verify", "evaluate", "report", "publish")
    ]
    printed = ""
    for line in lines:
        assert line[0] == "lrd"
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsys.readouterr()
        printed += found.out
        assert ended.value.code == 0, f"{line}: {found.err}"
    assert (tmp_path / "runs" / "out" / "report.html").stat().st_size > 100_000

    monkeypatch.chdir(tmp_path / "runs")
    names: dict[str, Any] = {}
    for code in blocks("pipeline/README.md", "A pandas session", "python"):
        exec(code, names)
    assert len(names["run"]) == len(names["ok"]) == num_rows
    assert names["failed"].empty
    assert len(names["costs"]) >= 2
    assert names["mean_kl"]["count"].sum() > num_rows
    assert names["passes"]["num_committed"].sum() == len(names["tokens"])
    assert names["least_sure"]["confidence"].is_monotonic_increasing
    assert names["trust"]["size"].sum() == num_rows
    assert names["run"]["correct"].mean() > 0.85
    assert names["differ"].empty
    assert (tmp_path / "runs" / "confidence.png").stat().st_size > 5000
    # What the driver recorded of its replicas' time.
    assert "time not in passes: " in printed
    share = float(re.search(r"time not in passes: ([\d.]+)%", printed)[1])
    assert 0 <= share < 100
