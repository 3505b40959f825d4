"""List the models that are known by name. Knows nothing of loading them."""

from __future__ import annotations

import argparse

from lrd.models.families import FAMILIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The job has no flags."""


def run(args: argparse.Namespace) -> int:
    """Print the list; exit code 0."""
    print("tiny    the embedded model (lrd/models/tiny), word problems, CPU")
    for family in FAMILIES:
        print(f"{family.name:7} folders whose config.json says {'/'.join(family.architectures)}")
    return 0
