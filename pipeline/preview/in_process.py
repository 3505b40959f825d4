"""Decodes prompts one after another in this process: the run's own replica, without Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from lrd import Engine
from lrd.engine import is_out_of_memory
from lrd.models.compiled import check_compile
from pipeline.config import MOST_CPUS, RunConfig
from pipeline.preview.frame import Frame, frame_of
from pipeline.replicas.pass_loop import NoRoomError, SlotEngine
from pipeline.replicas.placement import Placement
from pipeline.replicas.replica import Replica, ReplicaSettings
from pipeline.rows import Bucket, Prompt
from pipeline.run import replica_settings


@dataclass(frozen=True, slots=True)
class Decoded:
    """A row that has ended."""

    frame: Frame
    """Its last one."""
    row: dict[str, Any]
    """What a run writes for it, all result columns."""


def settings_here(config: RunConfig, schema: Any = None) -> ReplicaSettings:
    """What a replica on this machine needs to start. schema: that of answers, as JSON; None: none.

    Raises ValueError where this machine cannot decode with these settings.
    """
    has_gpu = torch.cuda.is_available()
    device = config.device if config.device != "auto" else "cuda" if has_gpu else "cpu"
    if device == "cuda" and not has_gpu:
        raise ValueError(
            "device cuda: torch sees no GPU on this machine, where the preview decodes; give "
            "--device cpu"
        )
    check_compile(config.compile, torch.device(device))
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else "float32"
    cpus = config.cpus_per_replica or min(MOST_CPUS, os.cpu_count() or 1)
    found = replica_settings(config, Placement(device, dtype, {"num_cpus": cpus}, 1), schema)
    # One row at a time; all slots are computed where the settings say so.
    slots = config.slots if config.pass_rows == "all" else 1
    return replace(found, slots=slots, columns="full")


class InProcess(Replica):
    """A replica whose passes run in calls of `decode`."""

    def __init__(self, settings: ReplicaSettings) -> None:
        super().__init__("preview", settings, threaded=False)
        self._engine: Engine | None = None
        self._reported: list[Any] = []
        self._num_given = 0

    def new_engine(self, bucket: Bucket, num_slots: int) -> SlotEngine:
        """The run's engine, which is then watched."""
        engine = super().new_engine(bucket, num_slots)
        assert isinstance(engine, Engine)
        self._engine = engine
        return engine

    def put(self, item: Any) -> None:
        """Keep what the pass loop reports."""
        self._reported.append(item)

    def decode(self, prompt: Prompt, show: Callable[[Frame], None]) -> Decoded:
        """Decode a row to its end, in longer canvases where it needs them. show: called after each
        pass.

        Raises ValueError where memory runs out.
        """
        canvases, seconds = self._settings.decoding.canvases, 0.0
        frame: Frame | None = None
        while True:
            self.submit(self._num_given, [prompt])
            self._num_given += 1
            frame = self._watched_pass(prompt, seconds, frame)
            show(frame)
            while frame.stop is None:
                frame = self._watched_pass(prompt, frame.seconds, frame)
                show(frame)
            seconds = frame.seconds
            reported, self._reported = self._reported, []
            report = self.report(reported)
            if not report.moved:
                (row,) = report.rows().to_pylist()
                return Decoded(frame, row)
            ((_, spent),) = report.moved
            prompt = prompt.moved(canvases, spent)

    def load(self) -> dict[str, Any] | None:
        """Load the model; ValueError where there is no memory for it."""
        try:
            return super().load()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ValueError(
                f"no memory for the weights ({_first_line(error)}); use --dtype bfloat16 or int8, "
                "or a machine with more memory"
            ) from error

    def _watched_pass(self, prompt: Prompt, seconds: float, before: Frame | None) -> Frame:
        """One pass and its frame. seconds: of the passes before."""
        began = time.perf_counter()
        try:
            self.step()
        except NoRoomError as error:
            raise ValueError(str(error)) from error
        seconds += time.perf_counter() - began
        assert self._engine is not None
        return frame_of(self._engine, prompt, seconds, before)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
