"""`num_uncommits`: the column of runs whose decoder opens committed positions again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.runs import MadeRun, with_column
from helpers.synthetic_run import LENGTH, write_run

from lrd import DecodingConfig, analysis
from pipeline.config import Columns, RunConfig
from pipeline.inspection.verify import Verification
from pipeline.preflight import fingerprint_of
from pipeline.report.comparison import make_comparison
from pipeline.report.report import make_report
from pipeline.report.samples import decoding_passes
from pipeline.rows import LEVELS, RESULT_SCHEMA, Layout, kept_schema
from pipeline.storage.storage import Storage

SABER = DecodingConfig.preset("saber", gen_length=LENGTH, block_length=32)
TILE = "positions opened again a row"


def planned(decoding: DecodingConfig, columns: Columns = "full") -> Layout:
    config = RunConfig(input="in", output="out", columns=columns, decoding=decoding)
    layout = Layout.planned(config)
    assert Layout.of(fingerprint_of(config, [], "float32")) == layout, "the fingerprint says it"
    return layout


@pytest.mark.parametrize("preset", ["fast", "wino", "saber", "rcr"])
@pytest.mark.parametrize("level", LEVELS)
def test_only_runs_that_open_positions_again_have_the_column(level: Columns, preset: str) -> None:
    layout = planned(DecodingConfig.preset(preset), level)
    there = preset != "fast" and level != "minimal"
    assert ("num_uncommits" in layout.schema.names) == there
    others = [name for name in layout.schema.names if name != "num_uncommits"]
    assert others == kept_schema(level).names
    assert ("num_uncommits" in layout.absent) == (preset != "fast" and not there)
    if preset == "fast" and level == "full":
        without = [name for name in RESULT_SCHEMA.names if name != "num_uncommits"]
        assert layout.schema.names == without, "as in runs of versions without the column"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run whose decoder opens positions again, and one whose decoder does not."""
    folder = tmp_path_factory.mktemp("uncommits")
    layout = planned(SABER)
    write_run(
        folder / "saber", (40, 20), decoding=SABER, layout=layout,
        num_uncommits=lambda n: n % 5, blocks=2,
    )  # fmt: skip
    write_run(folder / "fast", (40, 20))
    return folder / "saber", folder / "fast"


def test_reports_show_them_where_there_are_any(pair: tuple[Path, Path]) -> None:
    saber, fast = (make_report(Storage(str(folder)), 30).html for folder in pair)
    assert TILE in saber
    assert '"num_uncommits": 4' in saber.replace('":4', '": 4'), "in the viewer"
    assert TILE not in fast
    assert "num_uncommits" not in fast
    both = make_comparison((Storage(str(pair[0])), Storage(str(pair[1])))).html
    assert "positions opened again a row, mean" in both
    same = make_comparison((Storage(str(pair[1])), Storage(str(pair[1])))).html
    assert "positions opened again a row" not in same


def test_frames_have_them(pair: tuple[Path, Path]) -> None:
    saber, fast = (analysis.load(folder) for folder in pair)
    ok = saber[saber["status"] == "ok"]
    assert ok["num_uncommits"].tolist() == [n % 5 for n in ok.index.map(lambda i: i % 40)]
    assert "num_uncommits" not in fast.columns


def test_verify_checks_them(tmp_path: Path) -> None:
    run = MadeRun(tmp_path, layout=Layout(reopens=True)).begin().whole(failed=[3]).end()
    assert not list(Verification(run.storage).findings())
    run.rewrite(1, lambda table: with_column(table, "num_uncommits", [0, -1, None, None]))
    run.rewrite(2, lambda table: table.drop_columns("num_uncommits"))
    found = [str(finding) for finding in Verification(run.storage).findings()]
    for row in (1, 2):
        said = f"00001-0000000{row}: its num_uncommits is missing or below 0"
        assert any(said in finding for finding in found), found
    assert any("lacks num_uncommits: int32" in finding for finding in found), found


def test_verify_finds_the_column_where_it_cannot_be(tmp_path: Path) -> None:
    run = MadeRun(tmp_path).begin().whole().end()

    def added(table: pa.Table) -> pa.Table:
        return table.append_column("num_uncommits", pa.array([0] * 4, pa.int32()))

    run.rewrite(0, added)
    found = [str(finding) for finding in Verification(run.storage).findings()]
    assert any("also has num_uncommits: int32" in finding for finding in found), found


@pytest.mark.parametrize(
    ("commits", "decode_steps", "refine_steps", "expected"),
    [
        # All that pass 2 committed was opened again.
        ([1, 3, 3, 4], 4, 0, [True] * 4),
        # The same with refinement: which passes refined is not known.
        ([1, 4, 4, 4], 3, 1, None),
    ],
)
def test_passes_whose_tokens_were_all_opened_again(
    commits: list[int], decode_steps: int, refine_steps: int, expected: Any
) -> None:
    steps, kl = np.array(commits, np.int32), np.array([np.nan, 1, np.nan, 1], np.float32)
    found = decoding_passes(steps, kl, decode_steps, refine_steps, 2)
    assert (found.tolist() if found is not None else None) == expected
