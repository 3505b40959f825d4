"""Where a job's lines go: text for people, or one JSON object a line for a log collector.

    lrd generate … --log-format json        # or LRD_LOG_FORMAT=json in the environment

As JSON every line has time (UTC), level and event; the rest are that event's facts: those of the
run's events.jsonl, the ids of rows as they come in, progress, the closing figures.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

from pipeline.observe.events import LOG

VARIABLE = "LRD_LOG_FORMAT"
FORMATS = ("text", "json")


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The flag."""
    parser.add_argument("--log-format", choices=FORMATS, help=f"of all lines [${VARIABLE}, text]")


def set_up(log_format: str | None) -> None:
    """Send records to stderr as JSON, or nowhere. None: as the environment says.

    Raises ValueError for a format that there is not.
    """
    log_format = log_format or os.environ.get(VARIABLE) or "text"
    if log_format not in FORMATS:
        raise ValueError(f"{VARIABLE} is {log_format!r}; {' or '.join(FORMATS)} is due")
    LOG.handlers.clear()
    LOG.propagate = log_format == "text"
    LOG.setLevel(logging.INFO if log_format == "json" else logging.NOTSET)
    if log_format == "json":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        LOG.addHandler(handler)


def is_json() -> bool:
    """Whether lines are JSON now."""
    return bool(LOG.handlers)


def tell(line: str) -> None:
    """A line for whoever looks, on stderr."""
    print(as_line(line), file=sys.stderr, flush=True)


def as_line(text: str) -> str:
    """A text as a line of the format that is set."""
    return _json(_now(), "info", "message", {"text": text}) if is_json() else text


class JsonLines(logging.Formatter):
    """A record as one line."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        facts = dict(getattr(record, "facts", {}))
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return _json(at, record.levelname.lower(), record.getMessage(), facts)


def _json(at: datetime, level: str, event: str, facts: dict[str, Any]) -> str:
    line = {"time": at.isoformat(timespec="milliseconds"), "level": level, "event": event}
    return json.dumps({**line, **facts}, default=str)


def _now() -> datetime:
    return datetime.now(UTC)
