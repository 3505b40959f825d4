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
from pipeline import faults, parquet
from pipeline.config import RunConfig
from pipeline.driver import Driver, RunStoppedError
from pipeline.fleet import Fleet
from pipeline.lease import LeaseLostError
from pipeline.ledger import Ledger, Plan
from pipeline.parquet import InputFile
from pipeline.progress import Progress
from pipeline.reader import Reader
from pipeline.replica import Replica, ReplicaSettings
from pipeline.secrets import refuse_secrets
from pipeline.storage import Storage
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


def check(config: RunConfig) -> Checked:
    """Look at all that a run needs but the cluster.

    Raises ValueError for what is wrong with settings, input or checkpoint.
    """
    refuse_secrets(config)
    inputs, names = parquet.input_storage(config.input)
    output = Storage(config.output)
    _check_places(inputs, output)
    files, _ = parquet.inspect_inputs(inputs, names, config.prompt_column)
    dtype = "bfloat16" if config.dtype == "auto" else config.dtype
    face = load_model(config.model, "meta", dtype, config.revision)
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
        "model": fingerprint(config.model, config.revision),
        "dtype": dtype,
        "compile": config.compile,
        "decoding": config.decoding.model_dump(),
        "prompts": config.model_dump(include=prompts),
        "input": {file.name: file.sha256 for file in files},
    }


def generate(
    config: RunConfig,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_driver: Callable[[Driver], None] = lambda driver: None,
    *,
    retry_failed: bool = False,
    replica_class: type[Replica] = Replica,
) -> Summary:
    """Run `config` to its end; on_driver receives the driver, whose `stop` ends it early.

    retry_failed: decode rows that failed once more; what succeeds replaces the failure.
    replica_class: what decodes; benchmarks of the driver put something cheaper in its place.
    Raises ValueError for bad settings or input before anything is written, RunStoppedError
    where the run was interrupted and can be continued.
    """
    run = check(config)
    cluster = connect(config)
    device, dtype, size, resources = place(config, cluster)
    check_compile(config.compile, torch.device(device))
    plan = Plan(
        files=run.files,
        fingerprint=fingerprint_of(config, run.files, dtype),
        settings=config.model_dump(),
    )
    ledger = Ledger(run.output, run.inputs, plan)
    ledger.retry_failed = retry_failed
    settings = ReplicaSettings(
        model=config.model,
        revision=config.revision,
        device=device,
        dtype=dtype,
        decoding=config.decoding,
        slots=config.slots,
        threads=max(1, int(resources["num_cpus"])),
        compile=config.compile,
        memory_share=min(1.0, config.gpus_per_replica),
        faults=os.environ.get(faults.VARIABLE),
    )
    ledger.begin()
    try:
        reader = Reader(config, ledger, run.face, run.face.max_length)
        fleet = Fleet(
            settings,
            resources,
            size,
            ledger.event,
            config.hang_seconds,
            config.start_seconds,
            replica_class,
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


def connect(config: RunConfig) -> dict[str, float]:
    """Join the cluster that was named, or start a local one; its resources."""
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
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


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


def place(
    config: RunConfig, cluster: dict[str, float]
) -> tuple[str, str, int | Callable[[], int], dict[str, float]]:
    """Device, dtype, number of replicas and each one's resources.

    Where no number is set there are as many replicas as the cluster has room for, now and later.
    Raises ValueError with the numbers where the cluster cannot hold the replicas.
    """
    num_gpus, num_cpus = cluster.get("GPU", 0.0), cluster.get("CPU", 0.0)
    device = config.device
    if device == "auto":
        device = "cuda" if num_gpus >= config.gpus_per_replica else "cpu"
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"

    def room(cluster: dict[str, float]) -> int:
        if device == "cuda":
            return int(cluster.get("GPU", 0.0) / config.gpus_per_replica)
        share = config.cpus_per_replica
        return 1 if share is None else int(cluster.get("CPU", 0.0) / share + 1e-9)

    num_replicas = config.replicas or max(1, room(cluster))
    cpus = config.cpus_per_replica or min(num_cpus / num_replicas, 8.0)
    resources = {"num_cpus": cpus}
    if device == "cuda":
        resources["num_gpus"] = config.gpus_per_replica
        if num_replicas > room(cluster):
            raise ValueError(
                f"{num_replicas} replicas with {config.gpus_per_replica:g} GPUs each need "
                f"{num_replicas * config.gpus_per_replica:g}, the cluster has {num_gpus:g}; "
                "lower --replicas or --gpus-per-replica"
            )
    if num_replicas * cpus > num_cpus + 1e-9:
        raise ValueError(
            f"{num_replicas} replicas with {cpus:g} CPUs each need {num_replicas * cpus:g}, "
            f"the cluster has {num_cpus:g}; lower --replicas or --cpus-per-replica"
        )
    if config.replicas is not None:
        return device, dtype, config.replicas, resources

    def size() -> int:
        # At least one, so that an autoscaler sees what is wanted.
        return max(1, room(ray.cluster_resources()))  # type: ignore[no-untyped-call]

    return device, dtype, size, resources
