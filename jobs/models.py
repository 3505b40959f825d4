"""List the models that are known by name, with the canvases their authors published.

Any LLaDA or Dream checkpoint loads, listed or not.
"""

from __future__ import annotations

import argparse

from jobs import output
from lrd.models.registry import KNOWN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no flags of its own."""


@output.command("lrd models")
def run(args: argparse.Namespace) -> int:
    """Print the list; exit code 0."""
    print(f"{'model':42} {'family':7} {'kind':5} published gen_length/block_length")
    print(f"{'tiny':42} {'llada':7} {'chat':5} embedded; word problems, 64/64")
    for known in KNOWN:
        tasks = ", ".join(
            f"{task} {published.gen_length}/{published.block_length}"
            for task, published in known.tasks.items()
        )
        kind = "chat" if known.chat else "base"
        print(f"{known.hub_id:42} {known.family:7} {kind:5} {tasks or known.canvas or ''}")
    print("Any folder or hub id with a LLaDA or Dream config.json works: --model FOLDER|OWNER/NAME")
    return output.OK
