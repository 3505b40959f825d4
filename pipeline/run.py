"""One run from settings to summary: check everything, connect to Ray, drive, sum up.

Knows no command line and prints nothing.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray
import torch

from lrd import load_model
from lrd.models.checkpoint import fingerprint
from lrd.models.compiled import check_compile
from pipeline import faults, nodes, parquet
from pipeline.checkpoints import local_model
from pipeline.config import RunConfig
from pipeline.driver import Driver
from pipeline.fleet import Fleet, NewActor, actor_of
from pipeline.lease import LeaseLostError
from pipeline.ledger import Ledger, Plan
from pipeline.limits import RunStoppedError
from pipeline.parquet import InputFile
from pipeline.placement import place
from pipeline.progress import Progress
from pipeline.reader import Reader
from pipeline.remote import servers
from pipeline.replica import Replica, ReplicaSettings
from pipeline.secrets import refuse_secrets
from pipeline.storage import Storage, refused_as_settings
from pipeline.summary import Summary, summarize

LAST_TRY_SECONDS = 5.0


def package_version() -> str:
    """The project's version, part of every fingerprint."""
    try:
        return version("lrd-pipeline")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True, slots=True)
class Checked:
    """A run whose settings, input and checkpoint hold; nothing has been written."""

    inputs: Storage
    output: Storage
    face: Any
    """The model without weights: tokenizer, positions, special ids."""
    files: list[InputFile]


@refused_as_settings()
def check(config: RunConfig) -> Checked:
    """Look at all that a run needs but the cluster.

    Raises ValueError for what is wrong with settings, input or checkpoint.
    """
    refuse_secrets(config)
    inputs, names = parquet.input_storage(config.input)
    output = Storage(config.output)
    _check_places(inputs, output)
    output.kind()  # Whether it answers at all.
    files, _ = parquet.inspect_inputs(inputs, names, config.prompt_column)
    dtype = "bfloat16" if config.dtype == "auto" else config.dtype
    face = load_model(local_model(config.model), "meta", dtype, config.revision)
    if face.tokenizer is None:
        raise ValueError(f"{config.model}: has no tokenizer.json; put its tokenizer files beside")
    if config.prompt_format == "chat" and not face.tokenizer.chat_template:
        raise ValueError(f"{config.model}: has no chat template; use --prompt-format raw")
    if config.decoding.gen_length >= face.max_length:
        raise ValueError(
            f"gen_length {config.decoding.gen_length} leaves no room for a prompt in the "
            f"model's {face.max_length} positions"
        )
    return Checked(inputs, output, face, files)


def fingerprint_of(config: RunConfig, files: list[InputFile], dtype: str) -> dict[str, Any]:
    """All that the results of a run depend on."""
    prompts = {"prompt_column", "prompt_format", "system_prompt", "truncation"}
    return {
        "version": package_version(),
        "model": fingerprint(local_model(config.model), config.revision),
        "dtype": dtype,
        "compile": config.compile,
        "decoding": config.decoding.model_dump(),
        "prompts": config.model_dump(include=prompts),
        "input": {file.name: file.sha256 for file in files},
    }


REPLICAS = actor_of(Replica)


def generate(
    config: RunConfig,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_driver: Callable[[Driver], None] = lambda driver: None,
    *,
    retry_failed: bool = False,
    new_actor: NewActor = REPLICAS,
) -> Summary:
    """Run `config` to its end; on_driver receives the driver, whose `stop` ends it early.

    retry_failed: decode rows that failed once more; what succeeds replaces the failure.
    new_actor: what decodes; benchmarks of the driver put something cheaper in its place.
    Raises ValueError for bad settings or input before anything is written, RunStoppedError
    where the run was interrupted and can be continued.
    """
    run = check(config)
    connect(config)
    placement = place(config, list(nodes.alive().values()))
    check_compile(config.compile, torch.device(placement.device))
    plan = Plan(
        files=run.files,
        fingerprint=fingerprint_of(config, run.files, placement.dtype),
        settings=config.model_dump(),
    )
    with refused_as_settings():
        ledger = Ledger(run.output, run.inputs, plan)
    ledger.retry_failed = retry_failed
    settings = ReplicaSettings(
        model=config.model,
        revision=config.revision,
        device=placement.device,
        dtype=placement.dtype,
        decoding=config.decoding,
        slots=config.slots,
        threads=max(1, int(placement.resources["num_cpus"])),
        compile=config.compile,
        memory_share=min(1.0, config.gpus_per_replica),
        faults=os.environ.get(faults.VARIABLE),
        servers=servers(),
    )
    with refused_as_settings():
        ledger.begin()
    try:
        reader = Reader(config, ledger, run.face, run.face.max_length)
        fleet = Fleet(
            settings,
            placement,
            ledger.event,
            config.hang_seconds,
            config.start_seconds,
            new_actor,
        )
        driver = Driver(config, ledger, reader, fleet, on_progress)
        on_driver(driver)
        driver.run()
    except LeaseLostError as error:
        raise RunStoppedError(str(error)) from error
    except OSError:
        # Storage has been given its time; what is left to write gets one more try.
        ledger.output.patience = LAST_TRY_SECONDS
        raise
    finally:
        with suppress(LeaseLostError, OSError):
            ledger.end()
    return summarize(run.output)


def _check_places(inputs: Storage, output: Storage) -> None:
    same = inputs.root == output.root
    inside = output.root.startswith(inputs.root.rstrip("/") + "/")
    if inputs.is_local == output.is_local and same:
        raise ValueError(f"{output.uri}: is the input's folder; name another --output")
    if inside and f"{output.root}/data" == inputs.root:
        raise ValueError(f"{output.uri}: would write into the input; name another --output")


def connect(config: RunConfig) -> None:
    """Join the cluster that was named, or start a local one."""
    if not ray.is_initialized():
        address = config.address or os.environ.get("RAY_ADDRESS")
        _check_answers(address)
        try:
            ray.init(
                # Ray itself would join a cluster that happens to run on this machine.
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=None if address else False,
            )
        except ConnectionError as error:
            raise ValueError(f"no Ray cluster answers at {address}: {error}") from error


def _check_answers(address: str | None) -> None:
    """ValueError where nothing listens at host:port; Ray itself would retry for minutes and
    then end the process."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(
            f"no Ray cluster answers at {address} ({error}); check --address"
        ) from error
