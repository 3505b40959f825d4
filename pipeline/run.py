"""One run from settings to summary: check everything, connect to Ray, drive, sum up.

Knows no command line and prints nothing.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from lrd import load_model
from lrd.models.checkpoint import fingerprint
from pipeline import parquet
from pipeline.config import RunConfig
from pipeline.driver import Driver, Progress
from pipeline.ledger import Ledger, Plan
from pipeline.replica import ReplicaSettings
from pipeline.storage import Storage

UNSURE_ENTROPY = 0.5
"""An early stop that committed a position above this entropy (nats) is called unsure."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a result dataset holds, counted from its files."""

    num_rows: int
    num_failed: int
    errors: dict[str, int]
    """Reasons of failed rows with their numbers as N, most frequent first."""
    num_forwards: int
    num_output_tokens: int
    stop_reasons: dict[str, int]
    num_unsure_stops: int
    """Early stops with an open position above `UNSURE_ENTROPY`."""


def package_version() -> str:
    """The project's version, part of every fingerprint."""
    try:
        return version("lrd-pipeline")
    except PackageNotFoundError:
        return "unknown"


def generate(
    config: RunConfig,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_driver: Callable[[Driver], None] = lambda driver: None,
) -> Summary:
    """Run `config` to its end; on_driver receives the driver, whose `stop` ends it early.

    Raises ValueError for bad settings or input before anything is written, RunStoppedError
    where the run was interrupted and can be continued.
    """
    inputs, names = parquet.input_storage(config.input)
    output = Storage(config.output)
    _check_places(inputs, output)
    files, _ = parquet.inspect_inputs(inputs, names, config.prompt_column)
    dtype_checked = "bfloat16" if config.dtype == "auto" else config.dtype
    face = load_model(config.model, "meta", dtype_checked, config.revision)
    if face.tokenizer is None:
        raise ValueError(f"{config.model}: has no tokenizer.json; put its tokenizer files beside")
    if config.prompt_format == "chat" and not face.tokenizer.chat_template:
        raise ValueError(f"{config.model}: has no chat template; use --prompt-format raw")
    if config.decoding.gen_length >= face.max_length:
        raise ValueError(
            f"gen_length {config.decoding.gen_length} leaves no room for a prompt in the "
            f"model's {face.max_length} positions"
        )
    cluster = _connect(config)
    device, dtype, num_replicas, resources = _place(config, cluster)
    plan = Plan(
        files=files,
        fingerprint={
            "version": package_version(),
            "model": fingerprint(config.model, config.revision),
            "dtype": dtype,
            "decoding": config.decoding.model_dump(),
            "prompts": config.model_dump(
                include={"prompt_column", "prompt_format", "system_prompt", "truncation"}
            ),
            "input": {file.name: file.sha256 for file in files},
        },
        settings=config.model_dump(),
    )
    ledger = Ledger(output, inputs, plan)
    ledger.begin()
    settings = ReplicaSettings(
        model=config.model,
        revision=config.revision,
        device=device,
        dtype=dtype,
        decoding=config.decoding,
        slots=config.slots,
        threads=max(1, int(resources["num_cpus"])),
    )
    driver = Driver(
        config, ledger, face, face.max_length, settings, num_replicas, resources, on_progress
    )
    on_driver(driver)
    driver.run()
    return summarize(output)


def _check_places(inputs: Storage, output: Storage) -> None:
    same = inputs.root == output.root
    inside = output.root.startswith(inputs.root.rstrip("/") + "/")
    if inputs.is_local == output.is_local and same:
        raise ValueError(f"{output.uri}: is the input's folder; name another --output")
    if inside and f"{output.root}/data" == inputs.root:
        raise ValueError(f"{output.uri}: would write into the input; name another --output")


def _connect(config: RunConfig) -> dict[str, float]:
    """Join the cluster that was named, or start a local one; its resources."""
    if not ray.is_initialized():
        address = config.address or os.environ.get("RAY_ADDRESS")
        _check_answers(address)
        try:
            ray.init(
                address=address,
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


def _place(config: RunConfig, cluster: dict[str, float]) -> tuple[str, str, int, dict[str, float]]:
    """Device, dtype, number of replicas and each one's resources.

    Raises ValueError with the numbers where the cluster cannot hold the replicas.
    """
    num_gpus, num_cpus = cluster.get("GPU", 0.0), cluster.get("CPU", 0.0)
    device = config.device
    if device == "auto":
        device = "cuda" if num_gpus >= config.gpus_per_replica else "cpu"
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    fitting = int(num_gpus / config.gpus_per_replica) if device == "cuda" else 1
    num_replicas = config.replicas or max(1, fitting)
    cpus = config.cpus_per_replica or min(num_cpus / num_replicas, 8.0)
    resources = {"num_cpus": cpus}
    if device == "cuda":
        resources["num_gpus"] = config.gpus_per_replica
        if num_replicas > fitting:
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
    return device, dtype, num_replicas, resources


def summarize(output: Storage) -> Summary:
    """Count a result dataset, shard by shard, from its files alone."""
    columns = [
        "status",
        "error",
        "stop_reason",
        "num_forwards",
        "num_output_tokens",
        "max_entropy_at_stop",
    ]
    num_rows = num_forwards = num_output_tokens = num_unsure = 0
    errors: Counter[str] = Counter()
    stops: Counter[str] = Counter()
    for name in output.names("data"):
        with output.filesystem.open_input_file(output.path(f"data/{name}")) as source:
            table = pq.ParquetFile(source).read(columns=columns)
        num_rows += table.num_rows
        decoded = pc.equal(table["status"], "ok")
        ok, failed = table.filter(decoded), table.filter(pc.invert(decoded))
        for entry in failed["error"].value_counts().to_pylist():
            errors[re.sub(r"\d+", "N", entry["values"])] += entry["counts"]
        for entry in ok["stop_reason"].value_counts().to_pylist():
            stops[entry["values"]] += entry["counts"]
        num_forwards += pc.sum(ok["num_forwards"]).as_py() or 0
        num_output_tokens += pc.sum(ok["num_output_tokens"]).as_py() or 0
        unsure = pc.greater(ok["max_entropy_at_stop"], UNSURE_ENTROPY)
        num_unsure += pc.sum(unsure).as_py() or 0
    return Summary(
        num_rows=num_rows,
        num_failed=errors.total(),
        errors=dict(errors.most_common()),
        num_forwards=num_forwards,
        num_output_tokens=num_output_tokens,
        stop_reasons=dict(stops.most_common()),
        num_unsure_stops=num_unsure,
    )
