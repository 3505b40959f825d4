"""`lrd.analysis`: a run as a DataFrame, traces and tokens against the stored lists, plots."""

from __future__ import annotations

import argparse
import builtins
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from helpers.runs import MadeRun
from helpers.synthetic_run import DECODING, LENGTH, write_run

from jobs import evaluate
from lrd import analysis
from pipeline.analysis.tidy import _kept
from pipeline.report.samples import decoding_passes
from pipeline.rows import LEVELS, Columns, Layout, kept_schema
from pipeline.scoring.summary import wilson

mpl.use("Agg")
PLOTS = (
    *(analysis.plot_kl, analysis.plot_passes),
    *(analysis.plot_commit_order, analysis.plot_confidence),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    folder = tmp_path_factory.mktemp("analysis") / "run"
    return folder, write_run(folder)


@pytest.fixture(autouse=True)
def closed() -> Any:
    yield
    from matplotlib import pyplot

    pyplot.close("all")


# Rows.


def test_rows_are_those_that_were_stored(run: tuple[Path, pa.Table]) -> None:
    folder, table = run
    frame = analysis.load(folder)
    assert list(frame.columns) == table.column_names
    assert frame.index.equals(pd.RangeIndex(len(table)))
    for name in ("row_id", "status", "num_forwards", "blocks", "refine_converged", "question"):
        expected = [None if value is None else value for value in table[name].to_pylist()]
        assert [None if pd.isna(value) else value for value in frame[name]] == expected, name
    for name in ("kl_trace", "commit_step"):
        for found, expected in zip(frame[name], table[name].to_pylist(), strict=True):
            if expected is None:
                assert found is None
            else:
                np.testing.assert_array_equal(
                    found, np.array(expected, table[name].type.value_type.to_pandas_dtype())
                )
    assert (frame["status"] == "failed").any()
    # Whole numbers stay whole where failed rows have none.
    assert str(frame["num_forwards"].dtype) == "Int32"
    assert str(frame["refine_converged"].dtype) == "boolean"


def test_whole_numbers_of_the_input_are_exact(tmp_path: Path) -> None:
    made = MadeRun(tmp_path, num_shards=1, num_rows=2).begin().whole().end()
    large = (1 << 60) + 1

    def add(table: pa.Table) -> pa.Table:
        return table.add_column(0, "number", pa.array([large, None], pa.int64()))

    made.rewrite(0, add)
    assert analysis.load(made.output)["number"].tolist() == [large, pd.NA]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("samples", [1, 3])
def test_every_level_and_several_samples_load(level: Columns, samples: int, tmp_path: Path) -> None:
    decoding = DECODING.model_copy(update={"temperature": 0.7})
    table = write_run(tmp_path / "run", (6, 5), decoding=decoding, layout=Layout(samples, level))
    frame = analysis.load(str(tmp_path / "run"))
    assert list(frame.columns) == ["question", *kept_schema(level).names]
    assert len(frame) == 11 * samples
    assert frame["row_id"].tolist() == table["row_id"].to_pylist()
    if level == "full":
        assert set(analysis.traces(frame)["row_id"]) == set(frame["row_id"][frame.status == "ok"])
        return
    for use, name in ((analysis.traces, "kl_trace"), (analysis.tokens, "output_token_ids")):
        with pytest.raises(ValueError, match=f"needs .*{name}.* keeps {level} columns"):
            use(frame)
    with pytest.raises(ValueError, match=f"'kl_trace': .* keeps {level} columns"):
        analysis.load(tmp_path / "run", columns=["row_id", "kl_trace"])


def test_columns_are_chosen(run: tuple[Path, pa.Table]) -> None:
    frame = analysis.load(run[0], columns=["stop_reason", "num_forwards"])
    assert list(frame.columns) == ["stop_reason", "num_forwards"]
    with pytest.raises(ValueError, match="no column 'nonsense'; there are question, row_id"):
        analysis.load(run[0], columns=["nonsense"])
    with pytest.raises(ValueError, match=r"traces needs row_id, .* load the run without columns="):
        analysis.traces(frame)


def test_an_unfinished_run_is_refused_or_read_in_part(tmp_path: Path) -> None:
    table = write_run(tmp_path / "run", num_committed=2)
    with pytest.raises(ValueError, match="2 of 3 shards are finished") as refused:
        analysis.load(tmp_path / "run")
    assert str(refused.value).endswith("or load what is there with partial=True")
    assert "\n" not in str(refused.value)
    frame = analysis.load(tmp_path / "run", partial=True)
    assert frame["row_id"].tolist() == table["row_id"].to_pylist()


@pytest.mark.parametrize("there", ["nothing", "a folder"])
def test_what_is_no_run_is_refused_in_one_line(there: str, tmp_path: Path) -> None:
    if there == "a folder":
        (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="holds no run") as refused:
        analysis.load(tmp_path / "out")
    assert "\n" not in str(refused.value)


def test_a_column_that_pandas_cannot_hold_is_named(tmp_path: Path) -> None:
    made = MadeRun(tmp_path, num_shards=1, num_rows=2).begin().whole().end()
    days = pa.array([1, 100_000_000], pa.date32())  # The second is in the year 275760.
    made.rewrite(0, lambda table: table.append_column("day", days))
    with pytest.raises(ValueError, match=r"cannot hold column 'day' \(date32.*without it") as wrong:
        analysis.load(made.output)
    assert "\n" not in str(wrong.value)
    assert len(analysis.load(made.output, columns=["row_id"])) == 2


# Scores.


def test_scores_join_their_rows(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_run(folder, (20, 10), answer=lambda n: str(n))
    with pytest.raises(ValueError, match="no scores of word-problems, there are none"):
        analysis.load(folder, task="word-problems")
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    assert evaluate.run(parser.parse_args([str(folder), "--task", "word-problems"])) == 0
    frame = analysis.load(folder, task="word-problems")
    stored = pd.read_parquet(folder / ".scores/word-problems.parquet")
    assert frame["row_id"].tolist() == stored["row_id"].tolist()
    assert frame["correct"].tolist() == stored["correct"].tolist()
    assert str(frame["correct"].dtype) == "boolean"
    assert frame["extracted"].fillna("-").tolist() == stored["extracted"].fillna("-").tolist()
    with pytest.raises(ValueError, match="no scores of gsm8k, there are word-problems"):
        analysis.load(folder, task="gsm8k")
    # Rows that were written anew since.
    write_run(tmp_path / "other", (20, 10), failed_every=3, answer=lambda n: str(n))
    (tmp_path / "other/.scores").mkdir()
    scores = (folder / ".scores/word-problems.parquet").read_bytes()
    (tmp_path / "other/.scores/word-problems.parquet").write_bytes(scores)
    with pytest.raises(ValueError, match="are not those of its rows now"):
        analysis.load(tmp_path / "other", task="word-problems")


def test_an_inputs_own_column_is_not_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_run(folder, (4,), answer="1", correct="perhaps")
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    assert evaluate.run(parser.parse_args([str(folder), "--task", "word-problems"])) == 0
    with pytest.raises(ValueError, match="has a column correct itself"):
        analysis.load(folder, task="word-problems")
    frame = analysis.load(folder, task="word-problems", columns=["row_id"])
    assert list(frame.columns) == ["row_id", "correct", "extracted"]


# Passes.


def test_traces_of_a_row_by_hand(tmp_path: Path) -> None:
    """Three passes over three positions: the first refines, each other one commits."""
    made = MadeRun(tmp_path, num_shards=1, num_rows=3).begin()
    made.add(0, range(3), failed=[1])
    made.end()
    frame = analysis.load(made.output)
    steps = {"decode_steps": 2, "refine_steps": 1, "blocks": 1}
    frame = frame.assign(commit_step=[np.array([2, 3, 3])] * 3, **steps)
    found = analysis.traces(frame)
    assert found["row_id"].tolist() == ["00000-00000000"] * 3 + ["00000-00000002"] * 3
    one = found[:3].drop(columns="row_id")
    expected = pd.DataFrame(
        {
            "pass": np.array([1, 2, 3], np.int32),
            "phase": pd.Categorical(
                ["refinement", "decoding", "decoding"], ["refinement", "decoding"]
            ),
            "kl": np.array([np.nan, 0.5, 0.25], np.float32),
            "entropy": np.array([1.0, 0.5, 0.25], np.float32),
            "num_committed": np.array([0, 1, 2], np.int32),
        }
    )
    pd.testing.assert_frame_equal(one, expected)


def test_traces_are_the_stored_lists(run: tuple[Path, pa.Table]) -> None:
    folder, table = run
    found = analysis.traces(analysis.load(folder))
    rows = [row for row in table.to_pylist() if row["status"] == "ok"]
    assert len(found) == sum(row["num_forwards"] for row in rows)
    by_row = dict(iter(found.groupby("row_id")))
    for row in rows:
        own = by_row[row["row_id"]]
        assert own["pass"].tolist() == list(range(1, row["num_forwards"] + 1))
        assert (own["phase"] == "decoding").sum() == row["decode_steps"]
        assert own["num_committed"].sum() == LENGTH
        np.testing.assert_array_equal(own["kl"], np.array(row["kl_trace"], np.float32))
        np.testing.assert_array_equal(own["entropy"], np.array(row["entropy_trace"], np.float32))


def test_phases_that_the_results_do_not_tell_are_missing(tmp_path: Path) -> None:
    write_run(tmp_path / "run", (5,), decode_steps=999)
    assert analysis.traces(analysis.load(tmp_path / "run"))["phase"].isna().all()


def test_a_row_that_began_anew_in_a_longer_canvas_has_no_phases() -> None:
    """Two refining and three deciding passes in the short canvas, then two and five: the first
    canvas's commits are not in the result."""
    commits = np.arange(8, 13, dtype=np.int32)
    kl = np.array([np.nan, *[0.5] * 4, np.nan, *[0.5] * 6], np.float32)
    assert decoding_passes(commits, kl, 8, 4, 1) is None
    # The same numbers of a schedule with more steps than tokens, in one canvas.
    kl[5] = 0.5
    found = decoding_passes(commits, kl, 8, 4, 1)
    assert found is not None
    assert found.tolist() == [False] * 4 + [True] * 8


# Tokens.


def test_tokens_are_the_stored_lists(run: tuple[Path, pa.Table]) -> None:
    folder, table = run
    frame = analysis.load(folder)
    tokenizer = analysis.tokenizer(folder)
    found = analysis.tokens(frame, tokenizer)
    rows = [row for row in table.to_pylist() if row["status"] == "ok"]
    assert len(found) == len(rows) * LENGTH
    by_row = dict(iter(found.groupby("row_id")))
    for row in rows:
        own = by_row[row["row_id"]]
        assert own["position"].tolist() == list(range(LENGTH))
        assert own["token_id"].tolist() == row["output_token_ids"]
        assert own["commit_step"].tolist() == row["commit_step"]
        assert "".join(own["text"][own["kept"]]) == row["output_text"]
        assert own["confidence"].isna().tolist() == [c is None for c in row["token_confidence"]]
    assert "text" not in analysis.tokens(frame).columns


def test_canvases_may_have_lengths_of_their_own(tmp_path: Path) -> None:
    def cut(values: list[Any]) -> Any:
        return lambda row: values[: 8 + 8 * (row % 3)]

    write_run(
        tmp_path / "run",
        (6,),
        output_token_ids=cut([5] * 64),
        commit_step=cut([1, 2, 3, 4] * 16),
        token_confidence=cut([0.5] * 64),
        num_output_tokens=8,
    )
    frame = analysis.load(tmp_path / "run")
    found = analysis.tokens(frame)
    assert found.groupby("row_id", sort=False).size().tolist() == [8, 16, 24] * 2
    assert found["kept"].sum() == 6 * 8
    axes = analysis.plot_commit_order(frame, width=8)
    image = axes.collections[0].get_array()
    assert image is not None
    np.testing.assert_array_equal(image, np.tile([1, 2, 3, 4], 6).reshape(3, 8))


NAN = np.nan


@pytest.mark.parametrize(
    ("commit", "confidence", "number", "kept"),
    [
        # An open canvas: the tokens before the first EOS, whether a pass committed it or not.
        ([1, 2, 2, 3], [0.9, 0.8, 0.7, NAN], 2, [1, 1, 0, 0]),
        ([1, 2, 0, 0], [0.9, 0.8, NAN, NAN], 2, [1, 1, 0, 0]),
        ([1, 2, 2, 3], [0.9, 0.8, 0.7, 0.6], 4, [1, 1, 1, 1]),
        # Fixed tokens around holes: filled ones; one that an EOS ends early.
        ([0, 1, 2, 0], [1.0, 0.8, 0.7, 1.0], 4, [1, 1, 1, 1]),
        ([0, 1, 2, 3, 0], [1.0, 0.8, 0.7, NAN, 1.0], 3, [1, 1, 0, 0, 1]),
        # An EOS at a hole's last position looks like a token: not known.
        ([0, 1, 2, 0], [1.0, 0.8, 0.7, 1.0], 3, [-1, -1, -1, -1]),
    ],
)
def test_positions_of_the_answer(
    commit: list[int], confidence: list[float], number: int, kept: list[int]
) -> None:
    found = _kept(np.array(commit, np.int32), np.array(confidence, np.float32), number)
    assert found.tolist() == kept


def test_a_tokenizer_that_is_gone_is_named(tmp_path: Path) -> None:
    made = MadeRun(tmp_path, num_shards=1, num_rows=1).begin().whole().end()
    with pytest.raises(ValueError, match="m: no such folder here"):
        analysis.tokenizer(made.output)


# Plots.


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.__name__)
def test_plots_draw_into_axes_of_their_own_or_those_given(
    plot: Any, run: tuple[Path, pa.Table], tmp_path: Path
) -> None:
    from matplotlib import pyplot

    frame = analysis.load(run[0])
    axes = plot(frame)
    assert axes.get_title()
    axes.get_figure().savefig(tmp_path / "new.png")
    _, given = pyplot.subplots()
    assert plot(frame, ax=given) is given
    given.get_figure().savefig(tmp_path / "given.png")


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.__name__)
def test_plots_without_rows_say_so(plot: Any, run: tuple[Path, pa.Table]) -> None:
    frame = analysis.load(run[0])
    with pytest.raises(ValueError, match=f"{plot.__name__}: no row of this frame has"):
        plot(frame[frame["status"] == "failed"])


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.__name__)
def test_without_matplotlib_the_extra_is_named(
    plot: Any, run: tuple[Path, pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'lrd-pipeline\[plots\]'") as refused:
        plot(analysis.load(run[0]))
    assert "\n" not in str(refused.value)


def test_d_t_by_pass_has_the_quantiles_of_the_rows(run: tuple[Path, pa.Table]) -> None:
    frame = analysis.load(run[0])
    (median,) = analysis.plot_kl(frame).lines
    traces = analysis.traces(frame)
    for step, value in zip(*median.get_data(), strict=True):
        kl = traces["kl"][traces["pass"] == step].dropna()
        assert len(kl) >= 5
        assert value == pytest.approx(np.median(kl))


def test_the_histogram_has_every_row_and_the_percentiles(run: tuple[Path, pa.Table]) -> None:
    frame = analysis.load(run[0])
    passes = frame["num_forwards"].dropna().astype(int)
    axes = analysis.plot_passes(frame)
    heights = sum(bar.get_height() for bars in axes.containers for bar in bars)
    assert heights == len(passes)
    lines = [int(line.get_xdata()[0]) for line in axes.lines]
    ordered = sorted(passes)
    expected = [ordered[int(np.ceil(share * len(ordered))) - 1] for share in (0.5, 0.9, 0.99)]
    assert lines == expected
    assert axes.get_title() == "Forward passes: " + ", ".join(
        f"p{p} {value}" for p, value in zip((50, 90, 99), expected, strict=True)
    )


def test_one_answers_order_shows_its_tokens(run: tuple[Path, pa.Table]) -> None:
    frame = analysis.load(run[0])
    row = frame[frame["status"] == "ok"].iloc[3]
    axes = analysis.plot_commit_order(frame, row["row_id"], tokenizer=analysis.tokenizer(run[0]))
    image = axes.collections[0].get_array()
    assert image is not None
    np.testing.assert_array_equal(image.ravel()[:LENGTH], row["commit_step"])
    shown = "".join(text.get_text() for text in axes.texts)
    assert shown == row["output_text"].replace("\n", "↵").replace(" ", "·")
    with pytest.raises(ValueError, match="no row 9"):
        analysis.plot_commit_order(frame, "9")


def test_confidence_against_correctness_by_hand(run: tuple[Path, pa.Table]) -> None:
    """Twenty rows in ten groups of two: the last four groups are right."""
    confidence = np.linspace(0.5, 0.95, 20)
    frame = pd.DataFrame({"mean_confidence": confidence, "correct": np.arange(20) >= 12})
    axes = analysis.plot_confidence(frame.sample(frac=1, random_state=1))
    points, *_ = axes.containers[0]
    xs, ys = np.array(points.get_data(), float)
    np.testing.assert_allclose(xs, confidence.reshape(10, 2).mean(axis=1))
    assert list(ys) == [0.0] * 6 + [1.0] * 4
    assert axes.get_ylim()[0] < wilson(0, 2)[1]
    axes = analysis.plot_confidence(analysis.load(run[0]))
    assert axes.get_ylabel() == "forward passes"
