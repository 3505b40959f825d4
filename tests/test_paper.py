"""The paper's tables and figures from finished runs, and the paper's own numbers beside them."""

from __future__ import annotations

import csv
import hashlib
import json
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers import synthetic_run
from helpers.decodings import OF_THE_COMMIT_RULE, OF_THE_METHOD

from lrd import DecodingConfig, Sample, decode, load_model
from lrd.prompts import encode_prompt
from pipeline.experiments.paper.decodings import (
    DECODINGS,
    NEEDED,
    config_of,
    first_alike,
    items_named,
)
from pipeline.experiments.paper.figures import sweep
from pipeline.experiments.paper.measure import decoding_seconds, measure
from pipeline.experiments.paper.pages import Pages
from pipeline.experiments.paper.published import BENCHMARKS, published
from pipeline.experiments.paper.replays import SCHEMA, replay_name
from pipeline.experiments.paper.study import Study
from pipeline.output.result_shards import parquet_bytes
from pipeline.output.run_records import Event
from pipeline.storage.storage import Storage

DIGESTS = {
    "table1.csv": "85014604469d2e35ff783a889c8ac4e3165841d329a3a29a9befd23f2d1a1600",
    "table2.csv": "9faee03ff95560c2e85e7817c6c5fda8a37fd8247a48353032862d0736569100",
    "table3_table4.csv": "c0e4e4829a588ccc0dcc38bdd527e1f229ca383ac62e9ab85fad4c0379a5c5ae",
}
ROWS = 20
MANY_A_PASS = ("baseline_parallel", "fast")


# The paper's own.


@pytest.mark.parametrize("name", DIGESTS)
def test_the_papers_figures_are_as_they_were_taken_down(name: str) -> None:
    content = files("pipeline.experiments.paper").joinpath(name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == DIGESTS[name]


def test_the_papers_tables_agree_with_each_other() -> None:
    first = {(c.model, c.gen_length, c.method, c.benchmark): c for c in published("table1")}
    assert len(first) == 5 * 3 * 2 * 4
    assert {c.benchmark for c in first.values()} == set(BENCHMARKS.values())
    for place, cell in first.items():
        baseline = first[(*place[:2], "baseline", place[3])]
        assert cell.method == "baseline" or cell.accuracy > baseline.accuracy
        assert baseline.speed == 1.0
    for table in ("table2", "table3", "table4"):
        assert {c.method for c in published(table)} == set(NEEDED[table])
        for cell in published(table):
            same = first.get((cell.model, cell.gen_length, cell.method, cell.benchmark))
            if same is not None:
                assert cell.accuracy == same.accuracy
                assert cell.speed in (None, same.speed)
    assert published("figure2") == []


# Decodings and their runs.


def test_what_makes_a_decoding_cannot_be_overridden() -> None:
    given = {"r_f": 0.3, "early_stop": True, "max_refine_steps": 5, "block_length": 8}
    baseline = config_of("baseline", 16, given)
    assert (baseline.r_f, baseline.max_refine_steps, baseline.early_stop) == (0.0, 0, False)
    assert baseline.block_length == 8
    assert config_of("lrd", 16, given).r_f == 0.3
    assert config_of("no_mixing", 16, given).r_f == 0.0
    assert not config_of("no_early_stop", 16, given).early_stop
    assert config_of("r_f=0.7", 16, given).r_f == 0.7
    assert config_of("lf3", 16, given).refinement == 3
    assert config_of("lrd", 16, {}, "fast") == config_of("fast", 16)
    assert config_of("baseline_parallel", 16, {"tokens_per_step": 2}).entropy_threshold == 0.2


GIVEN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "blocks": {"block_length": 16},
    "an end at EOS": {"block_length": 16, "stop_at_eos": True},
    "no end at EOS": {"block_length": 16, "stop_at_eos": False},
    "seed and temperature": {"seed": 5, "temperature": 0.7, "sample_top_k": 9},
    "tokens a pass": {"tokens_per_step": 2},
    "a threshold": {"entropy_threshold": 0.1},
    "steps": {"steps": 32, "schedule": "timestep"},
    "a bound": {"entropy_bound": 0.1},
    "confidence": {"confidence_source": "sampling", "confidence_eos_eot_inf": True},
    "guidance": {"cfg_scale": 0.5, "logits_eos_inf": True},
    "monitor": {"scope": "open", "patience": 2},
}


@pytest.mark.parametrize("item", NEEDED)
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("method", ["paper", "fast"])
def test_decodings_of_a_table_differ_in_the_method_alone(
    item: str, given: str, method: str
) -> None:
    configs = {name: config_of(name, 64, GIVEN[given], method) for name in NEEDED[item]}
    shared = [config for name, config in configs.items() if name not in MANY_A_PASS]
    for field in DecodingConfig.model_fields.keys() - OF_THE_METHOD - OF_THE_COMMIT_RULE:
        assert len({getattr(config, field) for config in configs.values()}) == 1, field
    if method == "paper":
        for field in OF_THE_COMMIT_RULE:
            assert len({getattr(config, field) for config in shared}) == 1, field
    rules = {configs[name].entropy_threshold for name in MANY_A_PASS if name in configs}
    assert rules <= {0.2}, "the two rows that commit many a pass commit by one rule"
    ends = {config.stop_at_eos for config in configs.values()}
    assert ends == {GIVEN[given].get("stop_at_eos", False)}


QUESTION = "Tom has 3 apples. Ann has 4 apples. How many apples do they have together?"


def decoded(name: str, given: dict[str, Any]) -> Sample:
    model = load_model("tiny")
    (sample,) = decode(model, [encode_prompt(model, QUESTION)], config_of(name, 64, given))
    return sample


@pytest.mark.parametrize("name", ["baseline", "lrd", "baseline_parallel", "fast"])
def test_in_one_block_an_end_at_eos_changes_nothing(name: str) -> None:
    on, off = (decoded(name, {"stop_at_eos": value}) for value in (True, False))
    assert (on.canvas, on.commit_step, on.stop_reason) == (
        (off.canvas, off.commit_step, off.stop_reason)
    )


def test_in_blocks_the_baseline_takes_a_pass_for_every_token_as_the_paper_has_it() -> None:
    assert decoded("baseline", {"block_length": 16}).num_forwards == 64
    on = decoded("baseline", {"block_length": 16, "stop_at_eos": True})
    assert (on.stop_reason, on.num_forwards < 64) == ("eos", True)


@pytest.mark.parametrize("name", DECODINGS)
def test_every_decoding_can_be_run(name: str) -> None:
    assert config_of(name, 16).gen_length == 16


def test_equal_settings_are_decoded_once() -> None:
    assert first_alike("r_f=0", 64) == "no_mixing"
    assert first_alike("top_p=0.9", 64) == "lrd"
    assert first_alike("top_p=0.8", 64) == "top_p=0.8"
    assert first_alike("fast", 64, method="fast") == "lrd"


def test_tables_share_runs_and_settings_name_folders() -> None:
    study = study_in("out")
    third, both = study.runs(["table3"]), study.runs(["table3", "table4"])
    assert [run.output for run in both] == [run.output for run in third]
    assert len(third) == 5
    assert third[0].output.startswith("out/runs/tiny-word-problems-20-64-baseline-")
    other = study_in("out", decoding={"top_p": 0.8})
    assert other.runs(["table3"])[1].output != third[1].output
    # Where and with how many replicas is not what results depend on.
    same = study_in("out", run={"replicas": 3, "slots": 2})
    assert [run.output for run in same.runs(["table3"])] == [run.output for run in third]
    with pytest.raises(ValueError, match="'table5' is not a table or figure"):
        items_named(["table5"])
    assert items_named(["all"]) == list(NEEDED)
    assert items_named(["figure2", "table1"]) == ["table1", "figure2"]


def study_in(output: Path | str, **changes: Any) -> Study:
    prompts = {"word-problems": f"{output}/prompts/word-problems-20"}
    settings = {"gen_lengths": [64], "run": {}, "decoding": {}, **changes}
    return Study(str(output), ["tiny"], prompts, **settings)


# Time.


def events(*entries: tuple[float, str] | tuple[float, str, dict[str, Any]]) -> list[Event]:
    return [
        Event(synthetic_run.START + timedelta(seconds=entry[0]), entry[1], dict(*entry[2:]))
        for entry in entries
    ]


START, UP, END = (0, "driver started"), (7, "replica up"), (27, "driver finished")


def test_time_runs_from_the_first_replica_to_the_last_row() -> None:
    assert decoding_seconds(events(START, UP, (9, "replica up"), END)) == 20.0
    idle = (40, "driver started", {"owed_shards": 0})
    assert decoding_seconds(events(START, UP, END, idle, (41, "driver finished"))) == 20.0


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([], "no driver's start"),
        ([START, UP, (8, "driver stopped"), (30, "driver started"), END], "2 drivers"),
        ([START, UP, (8, "replica died"), END], "replica died"),
        ([START, UP, (8, "replica notice"), END], "replica notice"),
        ([START, UP], "stopped"),
        ([START, END], "no replica"),
    ],
)
def test_a_time_that_is_not_known_is_not_shown(entries: list[Any], why: str) -> None:
    assert why in str(decoding_seconds(events(*entries)))


# Pages.


def made_run(study: Study, name: str, num_right: int, wall: float = 10, **changes: Any) -> None:
    """A finished run of `ROWS` rows, of which the first `num_right` answer `#### 1`."""
    config = study.config(study.groups()[0], name)
    synthetic_run.write_run(
        Path(config.output),
        (ROWS,),
        failed_every=ROWS + 1,
        decoding=config.decoding,
        answer="1",
        output_text=lambda row: "1+0=1\n#### 1" if row < num_right else "#### 2",
        **changes,
    )
    synthetic_run.write_events(Path(config.output), [START, UP, (7 + wall, "driver finished")])


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study with the runs of Table 3 but one."""
    found = study_in(tmp_path)
    for name, num_right, wall, forwards, tokens in (
        ("baseline", 10, 40, 60, 20),
        ("lrd", 12, 10, 15, 18),
        ("no_refinement", 11, 8, 12, 19),
        ("no_mixing", 9, 20, 30, 21),
    ):
        made_run(
            found,
            name,
            num_right,
            wall,
            num_forwards=forwards,
            num_output_tokens=tokens,
            seconds=0.02 * forwards,
            max_entropy_at_stop=0.9 if name == "lrd" else 0.0,
        )
    return found


def line_of(page: str, words: str) -> str:
    return next(line for line in page.splitlines() if words in line)


def test_table_3_is_in_the_papers_form(study: Study, tmp_path: Path) -> None:
    assert Pages(study, 5).write("table3") == ["table3.md", "table3.csv"]
    page = (tmp_path / "table3.md").read_text()
    assert "50.0 (29.9–70.1) |" in line_of(page, "| tiny | 64 | baseline")
    assert "60.0 (38.7–78.1), +10.0 |" in line_of(page, "| tiny | 64 | LRD")
    # An ablation's change is against LRD, as in the paper.
    assert "55.0 (34.2–74.2), -5.0 |" in line_of(page, "| tiny | 64 | w/o latent refinement")
    assert "–" in line_of(page, "| tiny | 64 | w/o early stop")
    assert "tiny, word-problems, 64, w/o early stop: not decoded." in page
    assert "20 of 20 rows stopped early with a position above 0.5 nats" in page
    # The paper's own, whole, as it has no such model.
    assert "| Dream-Ins-7B | 512 | w/o mix embed | 58.0 | 57.8 | 80.7 | 40.8 |" in page
    beside = line_of(page.partition("beside the paper's")[2], "| w/o mix embed")
    assert beside.startswith("| w/o mix embed | LRD | -15.0 | -2.9 to -0.3 | 2.00 | 2.00 |")


def test_table_4_has_speed_in_time_and_in_forwards(study: Study, tmp_path: Path) -> None:
    Pages(study, 5).write("table4")
    page = (tmp_path / "table4.md").read_text()
    assert "| tiny | 64 | baseline | 1.00× | 1.00× | 60.0 | 20.0 | 20.0 |" in page
    assert "| tiny | 64 | LRD | 4.00× | 4.00× | 15.0 | 20.0 | 18.0, -2.0 |" in page
    ablation = "| tiny | 64 | w/o latent refinement | 5.00× | 5.00× | 12.0 | 20.0 | 19.0, +1.0 |"
    assert ablation in page
    rows = list(csv.DictReader((tmp_path / "table4.csv").read_text().splitlines()))
    ours = [row for row in rows if row["source"] == "here"]
    assert [row["method"] for row in ours] == list(NEEDED["table4"])[:-1]
    assert ours[1]["speed_time"] == "4"
    assert len(rows) == len(ours) + len(published("table4"))


def test_a_time_that_cannot_be_compared_is_left_out(study: Study, tmp_path: Path) -> None:
    group = study.groups()[0]
    lrd, other = (Path(study.config(group, name).output) for name in ("lrd", "no_mixing"))
    synthetic_run.write_events(lrd, [START, UP, (9, "driver stopped"), (20, "driver started"), END])
    manifest = json.loads((other / ".run/manifest.json").read_text())
    manifest["settings"]["slots"] = 99
    (other / ".run/manifest.json").write_text(json.dumps(manifest))
    Pages(study, 5).write("table4")
    page = (tmp_path / "table4.md").read_text()
    assert "| tiny | 64 | LRD | – | 4.00× |" in page
    assert "LRD: no speed in time; 2 drivers worked on it." in page
    assert "| tiny | 64 | w/o mix embed | – | 2.00× |" in page
    assert "slots differ from the baseline's run" in page


def test_a_machine_that_was_not_the_same_for_both_gives_no_speed(tmp_path: Path) -> None:
    found = study_in(tmp_path)
    made_run(found, "baseline", 10, 40, num_forwards=60, seconds=1.2)
    made_run(found, "lrd", 12, 10, num_forwards=15, seconds=0.9)
    Pages(found, 5).write("table4")
    page = (tmp_path / "table4.md").read_text()
    assert "| tiny | 64 | LRD | – | 4.00× | 15.0 | 60.0 |" in page
    assert "LRD: no speed in time; a pass took 3.00× the baseline's" in page


def test_a_model_that_the_paper_has_is_shown_beside_it_alone(tmp_path: Path) -> None:
    found = Study(
        str(tmp_path), ["hub/LLaDA-1.5"], {"gsm8k": f"{tmp_path}/p"}, [64], run={}, decoding={}
    )
    made_run(found, "baseline", 10)
    made_run(found, "lrd", 12)
    Pages(found, 5).write("table1")
    page = (tmp_path / "table1.md").read_text()
    assert "| LLaDA-1.5-8B | 256 | LRD | 80.4 | 1.5× |" in page
    assert "Dream" not in page
    assert "MBPP" not in page


def test_runs_that_are_not_whole_give_no_numbers(tmp_path: Path) -> None:
    found = study_in(tmp_path)
    with pytest.raises(ValueError, match="nothing of figure3 is decoded yet"):
        Pages(found, 5).write("figure3")
    folder = Path(found.config(found.groups()[0], "lrd").output)
    synthetic_run.write_run(folder, (ROWS, ROWS), num_committed=1)
    with pytest.raises(ValueError, match="nothing of figure3 is decoded yet"):
        Pages(found, 5).write("figure3")


def test_unsure_stops_and_failed_rows_are_counted(study: Study) -> None:
    found = measure(Storage(study.config(study.groups()[0], "lrd").output), "word-problems")
    assert (found.num_rows, found.num_unsure, found.num_failed) == (ROWS, ROWS, 0)
    assert found.seconds == 10.0


# Figures.


def replayed(study: Study, name: str, lines: list[dict[str, Any]]) -> None:
    output = Storage(study.config(study.groups()[0], name).output)
    output.write(replay_name(5), parquet_bytes(pa.Table.from_pylist(lines, schema=SCHEMA)))


def replay_line(kl: list[float], share: list[float], is_same: bool = True) -> dict[str, Any]:
    return {
        "row_id": "00000-00000000",
        "refine_steps": 2,
        "is_same": is_same,
        "kl_to_final": kl,
        "nucleus_share": share,
    }


def test_figure_2_is_the_mean_of_rows_that_came_out_the_same(tmp_path: Path) -> None:
    found = study_in(tmp_path)
    made_run(found, "fixed", 10)
    with pytest.raises(ValueError, match="no rows are replayed for figure2 yet"):
        Pages(found, 5).write("figure2")
    lines = [replay_line([0.5, 0.25, 0.125], []), replay_line([0.25], [])]
    replayed(found, "fixed", [*lines, replay_line([9.0], [], is_same=False)])
    names = Pages(found, 5).write("figure2")
    assert {"figure2.md", "figure2.csv", "figure2.svg"} <= set(names)
    points = list(csv.DictReader((tmp_path / "figure2.csv").read_text().splitlines()))
    # A row that has ended is at its answer.
    assert [float(p["kl"]) for p in points] == [0.375, 0.125, 0.0625]
    page = (tmp_path / "figure2.md").read_text()
    assert "length 64: 1 rows came out differently" in page
    assert "Rows replayed: length 64 2" in page
    assert (tmp_path / "figure2.svg").read_text().startswith("<svg")


def test_figure_3_counts_rows_that_converged(tmp_path: Path) -> None:
    found = study_in(tmp_path, decoding={"tau_refine": 0.4})
    made_run(found, "lrd", 10)
    Pages(found, 5).write("figure3")
    points = list(csv.DictReader((tmp_path / "figure3.csv").read_text().splitlines()))
    shares = [float(point["share"]) for point in points]
    assert [int(point["step"]) for point in points][:2] == [2, 3]
    assert shares == sorted(shares)
    assert 0 < shares[-1] <= 1
    assert "68.9 %" in (tmp_path / "figure3.md").read_text()


@pytest.mark.parametrize(("item", "setting"), [("figure4", "r_f"), ("figure5", "top_p")])
def test_sweeps_show_accuracy_by_share(tmp_path: Path, item: str, setting: str) -> None:
    found = study_in(tmp_path)
    made_run(found, "baseline", 10)
    made_run(found, f"{setting}=0", 8)
    made_run(found, f"{setting}=0.3", 16)
    replayed(found, "top_p=0.3", [replay_line([], [0.25, float("nan"), 0.75])])
    Pages(found, 5).write(item)
    points = list(csv.DictReader((tmp_path / f"{item}.csv").read_text().splitlines()))
    swept = [(p[setting], p["accuracy"]) for p in points if p["accuracy"]]
    assert swept == [("0", "0.4"), ("0.3", "0.8")]
    if item == "figure5":
        assert [(p["top_p"], p["token_ratio"]) for p in points if p["token_ratio"]] == [
            ("0.3", "0.5")
        ]
        assert (tmp_path / "figure5-tokens.svg").exists()
    assert "baseline, length 64" in (tmp_path / f"{item}.svg").read_text()


def test_a_baseline_above_every_point_lies_within_the_axis(tmp_path: Path) -> None:
    found = study_in(tmp_path)
    made_run(found, "baseline", ROWS)
    made_run(found, "r_f=0.3", 2)
    pages = Pages(found, 5)
    drawn = sweep("figure4", "r_f", pages.results("figure4"))
    assert drawn.figures[0].chart.y.high >= 1.0
