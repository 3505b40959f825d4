"""What happens in a run, as log records that carry facts; whoever runs it says where they go.

Nothing listens by default, and then a record costs nothing. `jobs/output.py` writes them as JSON.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

LOG = logging.getLogger("lrd")


def record(what: str, **facts: Any) -> None:
    """Something happened: a few words, and what can be read by a program."""
    if LOG.isEnabledFor(logging.INFO):
        LOG.info(what, extra={"facts": facts})


def note(line: str) -> None:
    """A line that people should see: on stderr, where the program has not set up logging."""
    LOG.warning(line)


def record_rows(shard: int, results: pa.Table) -> None:
    """Rows of `RESULT_SCHEMA` have come in: their ids, and why those failed that did."""
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
