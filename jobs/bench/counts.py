"""What decoding a prompt took: passes, whole passes, columns that went through the model."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.bench.peers import PeerSample
from lrd import Sample


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one prompt."""

    forwards: int
    full_passes: int
    positions: int
    """Columns over all passes, padding not counted."""


def counts_of(sample: Sample | PeerSample, num_columns: int) -> Counts:
    """A sample's counts; num_columns: its prompt and canvas together.

    TEMPORARY: `lrd.Sample` has no `full_passes` and `positions_computed` yet. Without them every
    pass counts as one over all columns, which holds for kv_cache none and suffix all alone.
    """
    forwards = sample.num_forwards
    return Counts(
        forwards,
        getattr(sample, "full_passes", forwards),
        getattr(sample, "positions_computed", forwards * num_columns),
    )
