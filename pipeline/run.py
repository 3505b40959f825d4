"""Runs one run from settings to summary: check everything, connect to Ray, decode, count.

Prints nothing: progress goes to a callback, events to the log.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

import torch
from ray.exceptions import RayError

from lrd.models.compiled import check_compile
from pipeline import faults
from pipeline.cluster import cluster_of, connect
from pipeline.config import RunConfig
from pipeline.driver import Driver
from pipeline.input.reader import Reader
from pipeline.observe.eta import Progress
from pipeline.observe.events import note, record
from pipeline.observe.stages import stage
from pipeline.output.lease import LeaseLostError
from pipeline.output.ledger import Ledger, Plan
from pipeline.output.run_folder import MANIFEST, read_manifest
from pipeline.output.statistics import Summary, summarize
from pipeline.preflight import Checked, check, fingerprint_of, model_fingerprint
from pipeline.replicas import nodes
from pipeline.replicas.deaths import RunStoppedError
from pipeline.replicas.fleet import Actors, Fleet
from pipeline.replicas.placement import Placement, place
from pipeline.replicas.replica import ReplicaSettings
from pipeline.storage.model_files import model_for_workers
from pipeline.storage.storage import refused_as_settings
from pipeline.storage.uris import servers

LAST_TRY_SECONDS = 5.0
DIGEST_SECONDS = 1.0
"""Replicas of a run whose weights' digest takes longer are started before it is known whether the
output belongs to the run."""


@contextmanager
def _failures_of_ray() -> Iterator[None]:
    """A failure of Ray itself stops the run, which can be continued: RunStoppedError."""
    try:
        yield
    except RayError as error:
        reason = str(error).strip().rpartition("\n")[2] or type(error).__name__
        raise RunStoppedError(f"Ray failed: {reason}") from error


@_failures_of_ray()
def generate(
    config: RunConfig,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_driver: Callable[[Driver], None] = lambda driver: None,
    *,
    retry_failed: bool = False,
    actors: Actors | None = None,
) -> Summary:
    """Run `config` to its end. on_driver is called with the driver, whose `stop` ends it early.

    retry_failed: decode rows that failed once more; what succeeds replaces the failure.
    actors: what starts replicas; benchmarks of the driver pass a cheaper stand-in.
    Raises ValueError for bad settings or input before anything is written, RunStoppedError
    where the run was interrupted and can be continued.
    """
    run = check(config)
    _refuse_other_run(config, run)
    digest = _begun(lambda: model_fingerprint(config))
    for line in run.notes:
        note(line)
    with stage(
        f"connecting to Ray at {where}" if (where := cluster_of(config)) else "starting Ray"
    ):
        connect(config)
    placement = place(config, list(nodes.alive().values()))
    check_compile(config.compile, torch.device(placement.device))
    fleet = Fleet(
        replica_settings(config, placement, run.form.schema),
        placement,
        record,
        config.hang_seconds,
        config.start_seconds,
        actors or Actors(),
    )
    try:
        model = _awaited(digest, fleet)
        plan = Plan(
            files=run.files,
            fingerprint=fingerprint_of(config, run.files, placement.dtype, model, run.form),
            settings=config.model_dump(),
        )
        with refused_as_settings():
            ledger = Ledger(run.output, plan)
        ledger.retry_failed = retry_failed
        fleet.on_event = ledger.event
        _decode(config, run, ledger, fleet, on_progress, on_driver)
    finally:
        fleet.end()
    with stage("counting results"):
        return summarize(run.output)


@refused_as_settings()
def _refuse_other_run(config: RunConfig, run: Checked) -> None:
    """Refuse an output that holds something else before anything is started: ValueError.

    Weights take long to read and the dtype is known with the machines: both are compared later.
    """
    known = {}
    if run.output.kind(MANIFEST) != "missing":
        before = read_manifest(run.output).fingerprint
        weights = before.get("model") or "not recorded"
        known = fingerprint_of(config, run.files, before.get("dtype", ""), weights, run.form)
    Ledger(run.output, Plan(run.files, known, {}))


def _decode(
    config: RunConfig,
    run: Checked,
    ledger: Ledger,
    fleet: Fleet,
    on_progress: Callable[[Progress], None],
    on_driver: Callable[[Driver], None],
) -> None:
    """Decode what the ledger owes."""
    with refused_as_settings():
        with stage("tokenising a sample of the prompts"):
            reader = Reader(
                config,
                run.inputs,
                run.files,
                run.face,
                run.face.max_length,
                ledger.restore,
                run.form,
            )
        with stage("taking the lease of the output"):
            ledger.begin()
    try:
        if unused := getattr(run.face, "unused_tensors", None):
            ledger.event("tensors not used", names=unused)
        with stage("finding out what is done"):
            driver = Driver(config, ledger, reader, fleet, on_progress)
        on_driver(driver)
        driver.run()
    except LeaseLostError as error:
        raise RunStoppedError(str(error)) from error
    except OSError:
        # Storage was retried for minutes already; the last writes are tried only briefly.
        ledger.output.patience = LAST_TRY_SECONDS
        raise
    finally:
        with stage("storing the last rows"), suppress(LeaseLostError, OSError):
            ledger.end()


def replica_settings(
    config: RunConfig, placement: Placement, schema: Any = None
) -> ReplicaSettings:
    """What each replica of a run needs to start. schema: that of answers, as JSON; None: none."""
    return ReplicaSettings(
        model=model_for_workers(config.model),
        revision=config.revision,
        device=placement.device,
        dtype=placement.dtype,
        decoding=config.decoding,
        columns=config.columns,
        stops=config.stop,
        schema=schema,
        row_temperatures="temperature" in config.row_settings,
        slots=config.slots,
        threads=max(1, int(placement.resources["num_cpus"])),
        compile=config.compile,
        pass_rows=config.pass_rows,
        memory_share=config.gpus_per_replica,
        faults=os.environ.get(faults.VARIABLE),
        servers=servers(),
    )


def _begun(call: Callable[[], str]) -> Future[str]:
    """The result of a call in a thread, which does not keep the process alive when that ends."""
    result: Future[str] = Future()

    def work() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, name="digest", daemon=True).start()
    return result


def _awaited(digest: Future[str], fleet: Fleet) -> str:
    """The digest of the weights; while it takes long, replicas start and load these."""
    with stage("starting replicas") as step:
        while True:
            try:
                return digest.result(timeout=DIGEST_SECONDS)
            except TimeoutError:
                if digest.done():
                    raise  # The call's own.
                fleet.begin_starts()
                num_loading = sum(replica.state == "loading" for replica in fleet)
                step.detail = f"{num_loading} of {len(fleet.replicas)} load the model"
