"""What the READMEs tell users to type, typed: the tour's commands, then the pandas session."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from jobs import cli

mpl.use("Agg")
ROOT = Path(__file__).resolve().parents[1]


def blocks(file: str, heading: str, language: str) -> list[str]:
    """Code blocks of a language under a heading."""
    chapter = (ROOT / file).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", chapter, re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("no_ray")
def test_the_tour_and_the_pandas_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
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
    assert len(names["run"]) == len(names["ok"]) == 512
    assert names["failed"].empty
    assert len(names["costs"]) >= 2
    assert names["mean_kl"]["count"].sum() > 512
    assert names["passes"]["num_committed"].sum() == len(names["tokens"])
    assert names["least_sure"]["confidence"].is_monotonic_increasing
    assert names["trust"]["size"].sum() == 512
    assert names["run"]["correct"].mean() > 0.85
    assert names["differ"].empty
    assert (tmp_path / "runs" / "confidence.png").stat().st_size > 5000
    # What the driver recorded of its replicas' time.
    assert "time not in passes: " in printed
    share = float(re.search(r"time not in passes: ([\d.]+)%", printed)[1])  # type: ignore[index]
    assert 0 <= share < 100
