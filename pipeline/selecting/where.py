"""Evaluates a user's condition on rows, an SQL expression, by DuckDB.

The expression is parsed first, and refused where it is more than a condition on one row. The
database is in memory, its settings are locked, and it can open no file, network or extension.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.selecting.run_rows import Mask, RunRows

SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "threads": "1",
}
UNSTABLE = """
    SELECT function_name FROM duckdb_functions() WHERE function_type = 'scalar'
    GROUP BY function_name HAVING count(*) FILTER (stability = 'CONSISTENT') = 0
"""
"""Functions whose value depends on more than their arguments in every form: random(), now(), …"""
NUMBER = "__row__"
"""A row's number in its batch."""


class Condition:
    """An expression that is true, false or null for a row."""

    def __init__(self, expression: str, schema: pa.Schema) -> None:
        """Raises ValueError, in one line with the expression, where it is not a condition on these
        columns or DuckDB is not installed."""
        self.expression, self._schema = expression, schema
        if not expression.strip():
            raise self._wrong("is empty")
        self._connection = _connect()
        tree = self._parse(expression)
        self._refuse_more_than_a_row(tree)
        self.columns = self._named_columns(tree)
        self._check_type()

    def holds(self, batch: pa.RecordBatch) -> Mask:
        """Where it is true, of rows with the columns `columns`. Raises ValueError where a value
        cannot be computed."""
        numbers = pa.array(np.arange(batch.num_rows))
        table = pa.Table.from_batches([batch.append_column(NUMBER, numbers)])
        found = np.zeros(batch.num_rows, np.bool_)
        rows = self._query(f"SELECT {NUMBER} FROM rows WHERE ({self.expression}\n)", table)
        found[[number for (number,) in rows]] = True
        return found

    def _parse(self, expression: str) -> dict[str, Any]:
        """The condition as DuckDB's parser has it."""
        plain, found = self._statement("true"), self._statement(expression)
        condition: dict[str, Any] = found.pop("where_clause")
        plain.pop("where_clause")
        if found != plain:  # Such as `x) ORDER BY (y`.
            raise self._wrong("is more than one expression")
        return condition

    def _statement(self, expression: str) -> dict[str, Any]:
        text = f"SELECT * FROM rows WHERE ({expression}\n)"
        ((found,),) = self._connection.execute("SELECT json_serialize_sql(?)", [text]).fetchall()
        parsed = json.loads(found)
        if parsed["error"] or len(parsed["statements"]) != 1:
            raise self._wrong(parsed.get("error_message", "is more than one expression"))
        node: dict[str, Any] = parsed["statements"][0]["node"]
        return node

    def _refuse_more_than_a_row(self, tree: dict[str, Any]) -> None:
        """A batch at a time is evaluated, so nothing may look at other rows; and nothing may give
        another answer the next time."""
        unstable = {name for (name,) in self._connection.execute(UNSTABLE).fetchall()}
        for node in _nodes(tree):
            if node["class"] == "SUBQUERY":
                raise self._wrong("has a query in it; a condition is about one row")
            if node["class"] == "FUNCTION" and node["function_name"] in unstable:
                raise self._wrong(
                    f"uses {node['function_name']}(), which depends on more than the row"
                )

    def _named_columns(self, tree: dict[str, Any]) -> list[str]:
        """The columns that it reads; names match in upper and lower case, as SQL has them."""
        references = [part for node in _nodes(tree) for part in _reference(node)]
        found = [name for name in self._schema.names if name.casefold() in _folded(references)]
        lambdas = [node["lhs"] for node in _nodes(tree) if node["class"] == "LAMBDA"]
        parameters = [name for lhs in lambdas for node in _nodes(lhs) for name in _reference(node)]
        known = _folded([*found, *parameters, "rows"])
        for node in _nodes(tree):
            for name in _reference(node)[:1]:  # `s.f` is the field f of column s.
                if name.casefold() not in known:  # Also names such as current_date.
                    raise self._wrong(f"no column {name!r}")
        if len(_folded(found)) < len(found):
            raise self._wrong(
                f"{', '.join(found)}: columns whose names differ in case alone; rename one"
            )
        return found

    def _check_type(self) -> None:
        empty = pa.schema([self._schema.field(name) for name in self.columns]).empty_table()
        table = empty.append_column(NUMBER, pa.array([], pa.int64()))
        ((_, kind, *_),) = self._query(f"DESCRIBE SELECT ({self.expression}\n) FROM rows", table)
        if kind != "BOOLEAN":
            raise self._wrong(f"is of type {kind}, neither true nor false")
        self._query(f"SELECT {NUMBER} FROM rows WHERE ({self.expression}\n)", table)

    def _query(self, text: str, rows: pa.Table) -> list[tuple[Any, ...]]:
        import duckdb

        try:
            self._connection.register("rows", rows)
            found: list[tuple[Any, ...]] = self._connection.execute(text).fetchall()
        except (duckdb.Error, pa.ArrowException) as error:
            raise self._wrong(str(error).splitlines()[0]) from error
        return found

    def _wrong(self, why: str) -> ValueError:
        known = ", ".join(self._schema.names)
        return ValueError(f"--where {self.expression!r}: {why}; the columns are {known}")


def _reference(node: dict[str, Any]) -> list[str]:
    """The parts of a reference to a column; none of another node."""
    return list(node["column_names"]) if node["class"] == "COLUMN_REF" else []


def _folded(names: Iterable[str]) -> set[str]:
    return {name.casefold() for name in names}


def _connect() -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise ValueError(
            f"--where needs DuckDB ({error}): pip install 'lrd-pipeline[select]'"
        ) from error
    connection = duckdb.connect(":memory:", config=SETTINGS)
    for setting in ("TimeZone = 'UTC'", "lock_configuration = true"):
        connection.execute(f"SET {setting}").fetchall()
    return connection


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every expression in a parsed one, itself first."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for part in tree.values():
            yield from _nodes(part)
    elif isinstance(tree, list):
        for part in tree:
            yield from _nodes(part)


def keep_where(rows: RunRows, kept: Mask, condition: Condition) -> Mask:
    """The kept rows for which the condition is true."""
    left = np.zeros_like(kept)
    # A condition without a column is read off some column all the same.
    for first, batch in rows.batches(condition.columns or ["row_id"], kept):
        part = slice(first, first + batch.num_rows)
        left[part] = kept[part] & condition.holds(batch)
    return left
