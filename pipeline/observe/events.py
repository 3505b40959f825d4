"""Logs the events of a run, under the logger `lrd`, as records with facts for programs.

Without a handler a record costs nothing. `jobs/output.py` writes them as JSON lines.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

LOG = logging.getLogger("lrd")

DRIVER_STARTED, DRIVER_FINISHED = "driver started", "driver finished"
DRIVER_STOPPED, REPLICA_UP = "driver stopped", "replica up"
REPLICA_DIED, REPLICA_RETIRED = "replica died", "replica retired"
REPLICAS = "replicas"
"""Names of events; the last: their number changes to the fact `wanted`."""
ENVIRONMENT = "environment"
"""Fact of `replica up`: what its results depend on beside the settings."""
CANVASES, PASS_SECONDS = "canvases_computed", "pass_seconds"
"""Facts of `driver finished` and `driver stopped`."""


def record(what: str, **facts: Any) -> None:
    """Log an event. what: its name. facts: its details, for programs."""
    if LOG.isEnabledFor(logging.INFO):
        LOG.info(what, extra={"facts": facts})


def note(line: str) -> None:
    """Log a warning for people, which goes to stderr by default."""
    LOG.warning(line)


def record_rows(shard: int, results: pa.Table) -> None:
    """Log that rows of `RESULT_SCHEMA` have finished: their ids, and the errors of failed ones."""
    if not LOG.isEnabledFor(logging.INFO) or not results.num_rows:
        return
    columns = ("row_id", "status", "error", "replica")
    rows = list(zip(*(results[name].to_pylist() for name in columns), strict=True))
    record(
        "rows finished",
        shard=shard,
        replica=rows[0][3],
        rows=[row_id for row_id, status, _, _ in rows if status == "ok"],
        failed={row_id: error for row_id, status, error, _ in rows if status != "ok"},
    )
