"""Find the settings for a checkpoint: sweep them over a sample of a task's problems.

    lrd tune --task gsm8k --input PROMPTS --model FOLDER --gen-length 256 --output SWEEP

Every setting is a run of the pipeline under SWEEP/runs, all in one Ray session; the same command
continues, and another grid into the same SWEEP adds to it. Writes settings.csv, tune.md,
pareto.svg and best.toml. `jobs/TUNING.md` says what to sweep first and how to read the outcome.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs import output
from jobs.flags import add_model_flags, given, in_one_line, parsed
from lrd.config import ALL_PRESETS, DECODERS, DecodingConfig
from pipeline.config import FORMS, RunConfig
from pipeline.experiments.tuning.grid import SWEPT, Grid
from pipeline.experiments.tuning.monitor import FIELDS, FORM
from pipeline.observe.stages import stage
from pipeline.scoring.tasks import TASKS, task_named

if TYPE_CHECKING:
    from pipeline.experiments.tuning.trials import Trial
    from pipeline.scoring.task import Task
    from pipeline.storage.storage import Storage

JOB = "lrd tune"
MONITORS = ("none", "mean", "max", "mean:patience=2", "mean:gate=0.2", "mean:gate=1")
SAID = {
    *("revision", "dtype", "prompt_column", "prompt_format", "system_prompt", "truncation"),
    "stop",
}
"""Settings of a run that `best.toml` repeats where they were given."""
GRID: dict[str, tuple[float, ...]] = {"r_f": (0.15, 0.3), "tau_decode": (0.1, 0.01, 0.001)}
"""What is swept where no values are given."""
OWN_FLAGS = {"decoding", "num_samples", "columns", "row_settings", "template_filler", *FORMS}
"""Settings of a run that are not the user's: every problem is decoded once, with all columns."""
NEAR = 1.5
"""The second plot: settings of at most so many times the forwards of the front's last."""


class Current:
    """The driver that is running, and whether the sweep was asked to stop."""

    def __init__(self) -> None:
        self.stopped = False
        self._driver: output.Stoppable | None = None

    def take(self, driver: output.Stoppable) -> None:
        """The next driver. Signals are ours from here on: Ray, which has started by now, puts
        handlers of its own in their place."""
        self._driver = driver
        if self.stopped:
            driver.stop()
        else:
            output.handle_signals(JOB, self)

    def stop(self) -> None:
        self.stopped = True
        if self._driver is not None:
            self._driver.stop()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags: the sample, the grid, and those of a run and its decoding."""
    parser.add_argument("--task", required=True, metavar="|".join(TASKS), help="how to score")
    parser.add_argument("--reference-column", help="column of the references [the task's own]")
    parser.add_argument(
        "--limit", type=int, default=300, help="problems in the random sample [300]"
    )
    parser.add_argument("--sample-seed", type=int, default=0, help="seed of the random sample [0]")
    parser.add_argument(
        "--max-loss",
        type=float,
        default=0.02,
        help="how far below the best accuracy the recommended setting may be, beside the test "
        "[0.02]",
    )
    grid = parser.add_argument_group("grid", "all combinations; a flag takes several values")
    grid.add_argument("--preset", choices=sorted(ALL_PRESETS), default="fast", help="start [fast]")
    for name in SWEPT:
        preset = " ".join(map(str, GRID.get(name, ()))) or "the preset's"
        meaning = DecodingConfig.model_fields[name].description
        flag = "--" + name.replace("_", "-")
        grid.add_argument(flag, nargs="+", metavar="X", help=f"{meaning} [{preset}]")
    grid.add_argument(
        "--monitor", nargs="+", metavar="M", help=f"early stops: {FORM} [{' '.join(MONITORS)}]"
    )
    grid.add_argument(
        "--whole-presets",
        nargs="*",
        choices=sorted(ALL_PRESETS),
        default=["fast", "paper"],
        help="presets to measure as they are; `baseline` takes one pass per token [fast paper]",
    )
    grid.add_argument(
        "--decoders",
        nargs="+",
        choices=["all", *DECODERS],
        default=[],
        metavar="NAME",
        help="published decoders to measure as they are, all or some of "
        f"{', '.join(DECODERS)}; nothing else is swept then but what flags give values for",
    )
    add_model_flags(parser.add_argument_group("run"), RunConfig, exclude=OWN_FLAGS)
    swept = {*SWEPT, *FIELDS}
    add_model_flags(parser.add_argument_group("decoding"), DecodingConfig, exclude=swept)


@output.decoding_command(JOB)
def run(args: argparse.Namespace) -> int:
    """Measure the settings that are not measured yet and write the outcome; the exit code."""
    with stage("loading torch and Ray"):
        from pipeline.experiments.tuning import task_sample
        from pipeline.experiments.tuning.trials import measure
        from pipeline.preflight import check
        from pipeline.replicas.deaths import RunStoppedError
        from pipeline.storage.storage import Storage

    task = task_named(args.task)
    if args.limit < 1:
        raise ValueError(f"--limit is {args.limit}; at least 1 is needed")
    if not 0 <= args.max_loss <= 1:
        raise ValueError(f"--max-loss is {args.max_loss}; expected a share from 0 to 1")
    with in_one_line():
        grid = grid_from(args)
        configs = grid.configs()
        config = RunConfig(**{**given(args, RunConfig), "decoding": configs[0]})
    for name, reason in grid.left_out.items():
        output.tell(f"{name} is left out: {reason}")
    check(config)
    store = Storage(config.output)
    prompts = task_sample.draw(store, config, task.name, args.limit, args.sample_seed)
    config = RunConfig(**{**dict(config), "input": prompts})
    current = Current()
    for number, decoding in enumerate(configs, 1):
        if current.stopped:
            raise RunStoppedError("interrupted")
        with stage(f"measuring setting {number} of {len(configs)}"):
            trial = measure(
                config,
                store,
                task,
                decoding,
                on_driver=current.take,
                reference_column=args.reference_column,
            )
        output.tell(f"{number}/{len(configs)} {described(trial, configs)}")
    write(config, task, store, args.max_loss)
    return output.OK


def grid_from(args: argparse.Namespace) -> Grid:
    """The grid that the flags give. One block length alone holds for whole presets too, as
    `gen_length` does: both shape the canvas."""
    defaults = {} if args.decoders else GRID
    values: dict[str, Any] = {name: list(defaults[name]) for name in defaults}
    for name in SWEPT:
        words = getattr(args, name)
        if words is not None:
            values[name] = [parsed(DecodingConfig, name, word) for word in words]
    fixed = given(args, DecodingConfig)
    if len(values.get("block_length", ())) == 1:
        (fixed["block_length"],) = values.pop("block_length")
    monitors = () if args.decoders else MONITORS
    return Grid(
        preset=args.preset,
        fixed=fixed,
        values=values,
        monitors=monitors if args.monitor is None else args.monitor,
        whole_presets=args.whole_presets,
        decoders=list(DECODERS) if "all" in args.decoders else args.decoders,
    )


def described(trial: Trial, configs: Sequence[DecodingConfig]) -> str:
    """A setting and its result, on one line."""
    from pipeline.experiments.tuning import tuning_page

    words = tuning_page.settings(trial.config, tuning_page.columns(configs))
    return (
        ", ".join(f"{name} {value}" for name, value in words.items())
        + f": {trial.accuracy:.1%} in {trial.mean_forwards:.2f} forwards, "
        f"{trial.mean_positions:,.0f} positions"
        + (f", {trial.num_unsure} uncertain stops" if trial.num_unsure else "")
    )


def write(config: RunConfig, task: Task, store: Storage, max_loss: float) -> None:
    """The files of all that is measured in `store`, and the recommendation on stdout."""
    from pipeline.experiments.tuning import tuning_page
    from pipeline.experiments.tuning.choice import choose
    from pipeline.experiments.tuning.trials import all_trials

    trials = all_trials(store, task.name)
    said = config.model_dump(include=SAID, exclude_defaults=True)
    run = {"model": config.model, **said}
    found = tuning_page.Sweep(run, task.name, trials, choose(trials, max_loss))
    files = {
        "settings.csv": tuning_page.as_csv(found),
        "tune.md": tuning_page.as_markdown(found),
        "pareto.svg": tuning_page.as_svg(found),
        "pareto-near.svg": tuning_page.as_svg(found, near=NEAR),
        "best.toml": tuning_page.as_toml(found),
    }
    for name, text in files.items():
        store.write(name, text.encode())
    print(f"recommended: {tuning_page.recommendation(found)}")
    print(f"{', '.join(files)}: {store.uri}")
