"""`lrd tune`: monitors as text, grids, samples, the recommendation and the files; without Ray.

`test_pipeline.py` has a whole sweep.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
import signal
import tomllib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import parse
from pydantic import ValidationError

from jobs import generate, tune
from jobs.flags import run_config
from jobs.tiny.problems import problems
from lrd import DecodingConfig
from lrd.config import DECODERS
from pipeline.config import RunConfig
from pipeline.experiments.paired import compare
from pipeline.experiments.tuning import task_sample, tuning_page
from pipeline.experiments.tuning.choice import as_preset, choose, cost_of, settings_file
from pipeline.experiments.tuning.grid import Grid, effective, run_name
from pipeline.experiments.tuning.monitor import monitor_name, monitor_settings
from pipeline.experiments.tuning.trials import Trial, all_trials
from pipeline.scoring.word_problems import final_answer
from pipeline.storage.storage import Storage

FAST = DecodingConfig.preset("fast")
SETTINGS = [
    {},
    {"r_f": 0.0},
    {"entropy_threshold": None},
    {"entropy_threshold": 0.4, "early_stop": False},
    {"stop_max_entropy": None, "reduction": "max", "patience": 2},
    {"confidence_threshold": 0.9},
    {"tokens_per_step": 4, "max_refine_steps": 0},
    {"steps": 16, "refinement": 3},
    {"steps": 16, "confidence_threshold": 0.9},
    {"block_length": 32, "refinement": "auto"},
    {"block_length": 16, "kv_cache": "dual", "cache_refresh": 4, "suffix": 1},
    {"block_length": 32, "kv_cache": "prefix", "suffix": 0},
]


@pytest.mark.parametrize(
    "text",
    [
        *("none", "mean", "max", "sum:patience=3", "mean:scope=open,patience=2,gate=0.25"),
        *("none:of=change", "mean:of=change", "max:patience=2,gate=0.5,of=change"),
    ],
)
def test_a_monitors_text_reads_back(text: str) -> None:
    for preset in ("fast", "paper", "baseline"):
        assert monitor_name(DecodingConfig.preset(preset, **monitor_settings(text))) == text


@pytest.mark.parametrize(
    "text",
    [
        *("median", "mean:gate", "mean:window=3", "mean:patience=0", "mean:of=entropy"),
        *("none:gate=1", "none:patience=2"),
    ],
)
def test_what_is_not_a_monitor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"monitor|reduction|patience"):
        DecodingConfig.preset("fast", **monitor_settings(text))


def test_folders_of_sweeps_keep_their_names() -> None:
    """A sweep that was measured before a setting was added is not measured again."""
    assert run_name(DecodingConfig.preset("paper")) == "a68996c5e2df"
    assert run_name(DecodingConfig.preset("paper", monitor="change")) != "a68996c5e2df"


def test_a_grid_has_every_combination_once_that_decodes_differently() -> None:
    grid = Grid(
        preset="fast",
        fixed={"gen_length": 64},
        values={"r_f": [0.0, 0.3], "top_p": [0.5, 0.9], "tau_decode": ["0.1", 0.01]},
        monitors=["none", "mean", "max:scope=open"],
        whole_presets=["fast", "baseline"],
    )
    configs = grid.configs()
    assert len(configs) == len({run_name(config) for config in configs})
    assert configs[0] == DecodingConfig.preset("fast", gen_length=64)
    # Without mixing top_p is idle, without a stop tau_decode: (1 + 2) x (1 + 2 + 2), and presets.
    assert len(configs) == 2 + 15
    assert effective(FAST.model_copy(update={"early_stop": False})).tau_decode == 0.1
    with pytest.raises(ValidationError, match="r_f"):
        Grid("fast", {}, {"r_f": [1.5]}, []).configs()


def test_decoders_are_measured_as_published_and_what_cannot_be_is_left_out() -> None:
    words = (
        "--task gsm8k --input in --output out --gen-length 64 --whole-presets fast --decoders all"
    )
    grid = tune.grid_from(parse(tune, *words.split()))
    configs = grid.configs()
    assert not grid.left_out
    # All end at an EOS, as `fast` does, or the test would compare that too.
    shape = {"gen_length": 64, "stop_at_eos": True}
    expected = [DecodingConfig.preset(name, **shape) for name in ("fast", *DECODERS)]
    # Beside these the preset alone, which is `fast`: without flags of its own nothing is swept.
    assert configs == list(dict.fromkeys(map(effective, expected)))
    assert len(configs) == 1 + len(DECODERS)
    guided = tune.grid_from(parse(tune, *words.split(), "--cfg-scale", "1", "--r-f", "0.3"))
    found = guided.configs()
    # What is swept is the preset's alone; what is fixed is everybody's, and two cannot be guided.
    assert guided.left_out.keys() == {"wino", "dpad"}
    assert all("cfg_scale" in reason and "\n" not in reason for reason in guided.left_out.values())
    assert len(found) == 2 + len(DECODERS) - 2


BLOCKS = {"gen_length": 64, "block_length": 16}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # A cache that every pass renews is none.
        ({"kv_cache": "dual", "cache_refresh": 1}, {}),
        ({"kv_cache": "prefix", "cache_refresh": 1, "suffix": 1}, {"suffix": 1}),
        # One block is the whole canvas: nothing lies behind it, and no block comes after an EOS.
        ({"block_length": 64}, {"block_length": None}),
        ({"block_length": 64, "suffix": 0}, {"block_length": None}),
        (
            {"block_length": 64, "kv_cache": "dual", "cache_refresh": 4},
            {"block_length": None, "kv_cache": "prefix", "cache_refresh": 4},
        ),
        # The first block is all there is, or nothing refines.
        ({"block_length": 64, "refinement": "first"}, {"block_length": None}),
        ({"max_refine_steps": 0, "refinement": "first"}, {"max_refine_steps": 0}),
        ({"max_refine_steps": 0, "refinement": "auto"}, {"max_refine_steps": 0}),
        ({"refinement": "first"}, {"refinement": "first"}),
        ({"max_refine_steps": 0, "refinement": 2}, {"refinement": 2}),
        # Nothing is compared with a threshold.
        ({"monitor": "change", "max_refine_steps": 0}, {"max_refine_steps": 0}),
        ({"monitor": "change", "refinement": 2}, {"refinement": 2}),
        ({"monitor": "change"}, {"monitor": "change"}),
        (
            {"monitor": "change", "refinement": 2, "early_stop": True},
            {"monitor": "change", "refinement": 2, "early_stop": True},
        ),
        # Three blocks lie behind the first.
        ({"suffix": 3}, {}),
        ({"suffix": 2}, {"suffix": 2}),
        ({"suffix": 0}, {"suffix": 0}),
        ({"suffix": range(48)}, {}),
        ({"suffix": range(47)}, {"suffix": range(47)}),
        ({"suffix": "none"}, {"suffix": "none"}),
        ({"kv_cache": "dual", "cache_refresh": 4}, {"kv_cache": "dual", "cache_refresh": 4}),
        ({"kv_cache": "prefix"}, {"kv_cache": "prefix"}),
    ],
)
def test_settings_that_decode_alike_are_one(
    settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = effective(DecodingConfig(**{**BLOCKS, **settings}))
    assert found == DecodingConfig(**{**BLOCKS, **expected})
    assert effective(found) == found


@pytest.mark.parametrize(
    ("fixed", "values", "expected"),
    [
        ({}, {"kv_cache": ["none", "dual"], "cache_refresh": [0, 4]}, 3),
        ({}, {"kv_cache": ["none", "prefix", "dual"], "cache_refresh": [0, 1, 4]}, 5),
        ({}, {"kv_cache": ["none", "dual"], "suffix": ["all", 0, 3]}, 4),
        ({}, {"block_length": [16, None], "kv_cache": ["none", "prefix", "dual"]}, 5),
        ({}, {"block_length": [16, 64, None], "suffix": ["all", 0]}, 3),
        ({}, {"block_length": [16, None], "refinement": ["initial", "first", "auto", 2]}, 7),
        ({}, {"refinement": ["initial", "last"]}, None),
        ({}, {"refinement": ["initial", 0]}, None),
        ({"steps": 2, "entropy_threshold": None}, {"block_length": [16, 32]}, None),
        ({"cfg_scale": 1.0}, {"kv_cache": ["none", "dual"]}, None),
        ({}, {"kv_cache": ["none"], "cache_refresh": [0, 4]}, None),
        ({}, {"block_length": [16, 48]}, None),
        ({}, {"suffix": ["all", -1]}, None),
        ({}, {"kv_cache": ["none", "all"]}, None),
    ],
)
def test_impossible_combinations_are_left_out_and_impossible_values_refused(
    fixed: dict[str, Any], values: dict[str, list[Any]], expected: int | None
) -> None:
    """None: some value goes with no combination of the others."""
    grid = Grid("fast", {"gen_length": 64, "block_length": 16, **fixed}, values, [])
    if expected is None:
        with pytest.raises(ValidationError):
            grid.configs()
    else:
        assert len(grid.configs()) == expected


def test_the_grids_flags_say_every_value() -> None:
    words = "--task gsm8k --input in --output out --gen-length 64 --block-length none 16 "
    words += "--kv-cache none dual --cache-refresh 0 4 --suffix all 1 --entropy-threshold none 0.2"
    words += " --refinement initial first 2"
    grid = tune.grid_from(parse(tune, *words.split()))
    assert grid.values["block_length"] == [None, 16] or grid.values["block_length"] == [None, "16"]
    configs = grid.configs()
    assert {c.suffix for c in configs} == {"all", 1}
    assert {(c.kv_cache, c.cache_refresh) for c in configs if c.block_length} == {
        ("none", 0),
        ("dual", 0),
        ("dual", 4),
    }
    assert {c.entropy_threshold for c in configs} == {None, 0.2}
    assert {(c.refinement, c.block_length is None) for c in configs} == {
        *itertools.product(["initial", 2], [True, False]),
        ("first", False),
    }
    # One block length is the canvas's shape, so whole presets have it too; of a cache they have
    # what they say themselves.
    words = "--task gsm8k --input in --output out --gen-length 64 --block-length 16 "
    words += "--kv-cache dual --r-f 0.3 --whole-presets paper"
    whole, *rest = tune.grid_from(parse(tune, *words.split())).configs()
    assert (whole.block_length, whole.kv_cache) == (16, "none")
    assert {(c.block_length, c.kv_cache) for c in rest} == {(16, "dual")}


@pytest.mark.parametrize("preset", ["fast", "paper", "baseline"])
@pytest.mark.parametrize("fixed", [{}, {"stop_at_eos": True}, {"stop_at_eos": False}])
def test_all_settings_of_a_grid_end_at_an_eos_or_none_does(
    preset: str, fixed: dict[str, bool]
) -> None:
    whole = ["fast", "paper", "baseline"]
    blocks = {"gen_length": 64, "block_length": 16, **fixed}
    configs = Grid(preset, blocks, {"r_f": [0.15, 0.3]}, ["none", "mean"], whole).configs()
    assert len(configs) >= len(whole)
    expected = fixed.get("stop_at_eos", DecodingConfig.preset(preset).stop_at_eos)
    assert {config.stop_at_eos for config in configs} == {expected}


@pytest.mark.parametrize("preset", ["fast", "paper", "baseline"])
@pytest.mark.parametrize("changes", SETTINGS)
def test_a_settings_file_gives_the_same_decoding(
    tmp_path: Path, preset: str, changes: dict[str, object]
) -> None:
    config = DecodingConfig.preset(preset, gen_length=64, **changes)
    run = {"model": "owner/model", "prompt_format": "raw", "system_prompt": 'Say "π" 😀\n'}
    text = settings_file(config, run, "why\nit is so")
    (tmp_path / "best.toml").write_text(text)
    words = ["--config", str(tmp_path / "best.toml"), "--input", "in", "--output", "out"]
    read = run_config(parse(generate, *words))
    assert read.decoding == config
    assert read.model_dump(include=set(run)) == run
    assert text.startswith("# why\n# it is so\n")


def test_a_preset_needs_no_changes() -> None:
    assert as_preset(FAST) == ("fast", {})


def trial(name: str, num_right: int, forwards: int, positions: int = 0, **changes: object) -> Trial:
    """200 problems, the first ones right; by default every pass goes through 100 positions."""
    correct = tuple(index < num_right for index in range(200))
    config = DecodingConfig.preset("fast", gen_length=64, **changes)
    return Trial(
        name=name,
        correct=correct,
        forwards=(forwards,) * 200,
        positions=(positions or forwards * 100,) * 200,
        config=config,
        model_digest="m",
        mean_seconds=forwards / 8,
    )


BEST = trial("best", 180, 10, r_f=0.3)
CLOSE = trial("close", 177, 6, r_f=0.2)
WORSE = trial("worse", 170, 3, r_f=0.1)
LATE = trial("late", 179, 30, early_stop=False)


def test_the_choice_has_the_fewest_forwards_that_are_not_shown_to_be_worse() -> None:
    found = choose([WORSE, LATE, CLOSE, BEST], max_loss=0.02)
    assert (found.best, found.chosen, found.num_equal) == (BEST, CLOSE, 3)
    assert compare(WORSE, BEST).p < 0.05 < found.against_best.p
    assert choose([WORSE, LATE, CLOSE, BEST], max_loss=0.01).chosen == BEST
    assert choose([WORSE], max_loss=0.0).chosen == WORSE
    nothing = trial("none", 0, 0)
    failed = Trial(
        name="failed",
        correct=nothing.correct,
        forwards=nothing.forwards,
        num_failed=200,
        config=nothing.config,
        model_digest="m",
        mean_seconds=None,
    )
    assert choose([failed, WORSE], max_loss=1.0).chosen == WORSE
    with pytest.raises(ValueError, match="nothing can be recommended"):
        choose([failed], max_loss=1.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "forwards"),
        ({"r_f": 0.3, "block_length": 16}, "forwards"),
        ({"block_length": 16, "kv_cache": "dual"}, "positions"),
        ({"block_length": 16, "kv_cache": "prefix", "cache_refresh": 4}, "positions"),
        ({"block_length": 16, "suffix": 0}, "positions"),
    ],
)
def test_what_settings_cost(changes: dict[str, Any], expected: str) -> None:
    """Passes where all are of one size; positions where some setting makes most of them small."""
    plain = DecodingConfig.preset("fast", gen_length=64)
    changed = DecodingConfig.preset("fast", gen_length=64, **changes)
    assert cost_of([plain]) == "forwards"
    assert cost_of([changed]) == cost_of([plain, changed]) == expected


def test_a_cache_is_chosen_by_its_positions() -> None:
    """It needs more passes than no cache, and computes less in them."""
    blocks = {"block_length": 16}
    plain = trial("plain", 180, 10, **blocks)
    dual = trial("dual", 179, 11, 400, **blocks, kv_cache="dual")
    renewed = trial("renewed", 180, 10, 600, **blocks, kv_cache="dual", cache_refresh=4)
    trials = [plain, dual, renewed]
    found = choose(trials, max_loss=0.02)
    assert (found.cost, found.best, found.chosen) == ("positions", renewed, dual)
    sweep = tuning_page.Sweep({"model": "m"}, "word-problems", trials, found)
    assert [one.name for one in sweep.front()] == ["dual", "renewed"]
    page = tuning_page.as_markdown(sweep)
    assert "89.5% in 400 positions, the fewest among the 3 settings" in page
    assert "| forwards | positions | seconds |" in page
    assert "| 11.00 | 400 | 1.38 |" in page
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(tuning_page.as_csv(sweep)))}
    assert rows["dual"]["mean_positions"] == "400.0"
    assert rows["dual"]["mean_seconds"] == "1.38"
    assert [rows[name]["cache_refresh"] for name in ("plain", "dual", "renewed")] == ["-", "0", "4"]
    drawing = tuning_page.as_svg(sweep)
    assert "mean positions computed a problem" in drawing
    assert "11.0 forwards, 400 positions" in drawing


def test_the_files_show_what_was_measured() -> None:
    trials = [WORSE, LATE, CLOSE, BEST]
    found = tuning_page.Sweep({"model": "m"}, "word-problems", trials, choose(trials, 0.02))
    rows = list(csv.DictReader(io.StringIO(tuning_page.as_csv(found))))
    assert [row["run"] for row in rows] == ["best", "late", "close", "worse"]
    assert rows[2] | {
        "r_f": "0.2", "monitor": "mean:gate=0.2", "commit": "entropy < 0.2", "correct": "177",
        "accuracy": "0.8850", "mean_forwards": "6.000", "below_best": "0.0150", "front": "1",
    } == rows[2]  # fmt: skip
    assert rows[1]["monitor"] == "none"
    assert (rows[1]["tau_decode"], rows[1]["front"]) == ("-", "0")
    page = tuning_page.as_markdown(found)
    assert "88.5% in 6.00 forwards, the fewest among the 3 settings" in page
    assert "-1.5 points" in page
    assert "0 problems gained and 3 lost, p = 0.25" in page
    settings = tomllib.loads(tuning_page.as_toml(found))
    assert settings["decoding"]["r_f"] == 0.2
    for label in "123":
        assert f">{label}</text>" in tuning_page.as_svg(found)
    assert tuning_page.as_svg(found).count("<circle") == 4
    assert tuning_page.as_svg(found, near=1.5).count("<circle") == 3


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two shards of ten rows."""
    folder = tmp_path / "in"
    folder.mkdir()
    for shard in range(2):
        numbers = range(10 * shard, 10 * shard + 10)
        table = pa.table(
            {"prompt": [f"{n}+1?" for n in numbers], "answer": list(map(str, numbers))}
        )
        pq.write_table(table, folder / f"{shard}.parquet")
    return folder


def drawn(output: Storage) -> list[str]:
    return pq.read_table(output.path(task_sample.FILE))["answer"].to_pylist()


def test_a_sample_is_drawn_once(tmp_path: Path, source: Path) -> None:
    config = RunConfig(input=str(source), output=str(tmp_path / "out"), decoding=FAST)
    output = Storage(config.output)
    prompts = task_sample.draw(output, config, "word-problems", 8, seed=3)
    first = drawn(output)
    assert len(set(first)) == 8
    assert first == sorted(first, key=int)
    assert prompts == f"{config.output}/prompts"
    Storage(str(source)).delete_file("0.parquet")
    task_sample.draw(output, config, "word-problems", 8, seed=3)
    assert drawn(output) == first
    with pytest.raises(ValueError, match="limit was 8, is 9"):
        task_sample.draw(output, config, "word-problems", 9, seed=3)
    other = config.model_copy(update={"model": "other"})
    with pytest.raises(ValueError, match="model was 'tiny', is 'other'"):
        task_sample.draw(output, other, "word-problems", 8, seed=3)


def test_samples_differ_by_their_seed_and_take_all_where_there_are_few(
    tmp_path: Path, source: Path
) -> None:
    config = RunConfig(input=str(source), output="unused", decoding=FAST)
    answers = [task_sample.rows(config, 8, seed)["answer"].to_pylist() for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    assert task_sample.rows(config, 100, 1)["answer"].to_pylist() == list(map(str, range(20)))


def call(*words: str) -> int:
    return tune.run(parse(tune, *words))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--task", "sums"], "sums"),
        (["--limit", "0"], "--limit"),
        (["--max-loss", "2"], "--max-loss"),
        (["--r-f", "high"], "r_f"),
        (["--monitor", "median"], "reduction"),
        (["--monitor", "mean:window=3"], "window=3"),
        (["--input", "/nowhere"], "/nowhere"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--entropy-threshold", "0.2", "--tokens-per-step", "2"], "keep one"),
        (["--kv-cache", "both"], "kv_cache"),
        (["--cache-refresh", "4"], "set kv_cache to dual or prefix"),
        (["--block-length", "32", "48"], "block_length 48 does not divide"),
        (["--suffix", "some"], "suffix"),
        (["--suffix", "-1"], "suffix -1 counts blocks"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    tmp_path: Path,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: str,
) -> None:
    output = tmp_path / "out"
    usual = ["--task", "word-problems", "--input", str(source), "--output", str(output)]
    assert call(*usual, *words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1, printed.err
    assert expected in printed.err
    assert not output.exists()


def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["--task", "word-problems", "--input", str(source), "--output", str(tmp_path)]
    (tmp_path / "notes.txt").write_text("mine")
    assert call(*usual) == 2
    assert "is not the folder of a sweep" in capsys.readouterr().err
    assert not (tmp_path / "sample.json").exists()


class FakeDriver:
    stopped = False

    def stop(self) -> None:
        self.stopped = True


def test_a_stop_reaches_the_driver_at_work_and_the_next(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ended, at_work, late = FakeDriver(), FakeDriver(), FakeDriver()
    current = tune.Current()
    try:
        current.take(ended)
        # What Ray does when it starts.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        current.take(at_work)
        os.kill(os.getpid(), signal.SIGTERM)
        current.take(late)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert current.stopped
    assert at_work.stopped
    assert late.stopped
    assert not ended.stopped
    assert "lrd tune: storing finished rows" in capfd.readouterr().err


@pytest.fixture
def signals_kept() -> Iterator[None]:
    """The handlers of Ctrl-C and SIGTERM as they were: jobs install their own."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


@pytest.mark.usefixtures("signals_kept", "kept_replicas")
def test_a_sweep_continues_and_is_added_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tested = list(islice(problems("test", seed=5), 12))
    table = pa.table(
        {"prompt": [p.question for p in tested], "answer": [str(p.answer) for p in tested]}
    )
    pq.write_table(table, tmp_path / "in.parquet")

    def sweep() -> list[dict[str, str]]:
        words = f"--task word-problems --input {tmp_path}/in.parquet --output {tmp_path}/out "
        words += "--limit 8 --gen-length 32 --replicas 1 --cpus-per-replica 1 "
        words += "--r-f 0.3 --tau-decode 0.1 --monitor mean:gate=0.2 --whole-presets"
        assert tune.run(parse(tune, *words.split())) == 0
        with (tmp_path / "out/settings.csv").open() as lines:
            return list(csv.DictReader(lines))

    (first,) = sweep()
    runs = tmp_path / "out/runs"
    results = pd.read_parquet(runs / first["run"] / "data")
    right = results["output_text"].map(final_answer) == results["answer"]
    assert (int(first["correct"]), int(first["problems"])) == (right.sum(), 8)
    assert float(first["mean_forwards"]) == pytest.approx(results["num_forwards"].mean(), abs=1e-3)
    positions = results["positions_computed"].mean()
    assert 32 < float(first["mean_positions"]) == pytest.approx(positions, abs=0.1)
    assert float(first["mean_seconds"]) == pytest.approx(results["seconds"].mean(), rel=1e-2)
    best = tomllib.loads((tmp_path / "out/best.toml").read_text())
    assert best["decoding"]["gen_length"] == 32
    assert "recommended: r_f 0.3" in capsys.readouterr().out

    # A run that another grid left there.
    shutil.copytree(runs / first["run"], runs / "other")
    manifest = json.loads((runs / "other/.run/manifest.json").read_text())
    manifest["settings"]["decoding"]["entropy_threshold"] = 0.8
    (runs / "other/.run/manifest.json").write_text(json.dumps(manifest))
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    rows = sweep()
    assert {row["run"]: row["commit"] for row in rows} == {
        first["run"]: "entropy < 0.2",
        "other": "entropy < 0.8",
    }
    after = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    assert after == before, "what was measured was decoded again"

    manifest["fingerprint"]["model"] = "of other weights"
    (runs / "other/.run/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="different weights"):
        all_trials(Storage(str(tmp_path / "out")), "word-problems")
