"""`lrd bench`, and benchmarks that answer one question each (README.md lists them)."""

from jobs.bench.throughput import add_arguments, run

__all__ = ["add_arguments", "run"]
