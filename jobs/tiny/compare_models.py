"""Two models under every decoder, on the same problems: when does LRD pay?

    python -m jobs.tiny.compare_models PLAIN SOFT --output runs/compare --page PAGE.md

Decodes disjoint test problems (`jobs/tiny/problems.py`) with both checkpoints by the decoders of
`pipeline/experiments/decoders.py`, stores each problem's outcome under OUTPUT/MODEL/DECODER.json,
and writes what is measured into the page's marked blocks and a plot beside it. Stored outcomes
are not decoded again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.tiny.accuracy import distinct, outcomes
from jobs.tiny.comparison_page import ModelOutcomes, as_svg, blocks, fill
from jobs.tiny.problems import Problem
from lrd import DecodingConfig, load_model
from lrd.models.checkpoint import fingerprint
from lrd.models.protocol import DiffusionModel
from pipeline.experiments.decoders import DECODERS, Decoder, decoders_named
from pipeline.experiments.paired import Outcomes
from pipeline.storage.storage import Storage

OK, BAD_INPUT, INTERRUPTED = 0, 2, 75
LABELS = ("plain", "soft feedback")
FEW_FORWARDS = 8.0
"""The second plot shows decoders with at most so many: those that commit many tokens a pass."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Outcomes on storage, with everything that they depend on."""

    output: Storage
    label: str
    model_digest: str
    problems_digest: str

    def path(self, decoder: Decoder) -> str:
        return f"{self.label.replace(' ', '-')}/{decoder.key}.json"

    def depends_on(self, config: DecodingConfig) -> dict[str, Any]:
        return {
            "model": self.model_digest,
            "problems": self.problems_digest,
            "decoding": config.model_dump(exclude=config.unrecorded),
        }

    def read(self, decoder: Decoder, config: DecodingConfig) -> Outcomes | None:
        """The stored outcomes; None where there are none.

        Raises ValueError where they are of another model, other problems or other settings.
        """
        try:
            kept = json.loads(self.output.read(self.path(decoder)))
        except FileNotFoundError:
            return None
        differing = [name for name, value in self.depends_on(config).items() if kept[name] != value]
        if differing:
            raise ValueError(
                f"{self.output.path(self.path(decoder))}: was measured with another "
                f"{' and another '.join(differing)}; name another --output"
            )
        found = kept["outcomes"]
        found["correct"] = tuple(map(bool, found["correct"]))
        return Outcomes(**{**found, "forwards": tuple(found["forwards"])})

    def write(
        self, decoder: Decoder, config: DecodingConfig, found: Outcomes, seconds: float
    ) -> None:
        content = {
            **self.depends_on(config),
            "outcomes": {**asdict(found), "correct": [int(right) for right in found.correct]},
            "seconds": seconds,
        }
        self.output.write(self.path(decoder), json.dumps(content).encode())


def measure_model(
    checkpoint: str,
    stored: Stored,
    tested: list[Problem],
    decoders: Sequence[Decoder],
    gen_length: int,
) -> dict[str, Outcomes]:
    """Outcomes by decoder key; the model is loaded only if something is left to measure."""
    model: DiffusionModel | None = None
    found: dict[str, Outcomes] = {}
    for decoder in decoders:
        config = decoder.config(gen_length)
        outcome = stored.read(decoder, config)
        if outcome is None:
            model = model or load_model(checkpoint)
            began = time.monotonic()
            outcome = outcomes(model, tested, config, decoder.key)
            seconds = time.monotonic() - began
            stored.write(decoder, config, outcome, seconds)
            print(
                f"{stored.label}, {decoder.name}: {outcome.accuracy:.1%} in "
                f"{outcome.mean_forwards:.2f} forwards, {seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        found[decoder.key] = outcome
    return found


def draw(page: Path, measured: Sequence[ModelOutcomes], decoders: Sequence[Decoder]) -> None:
    """PAGE.svg, and PAGE-few.svg where there are decoders with few forwards."""
    page.with_suffix(".svg").write_text(as_svg(measured, decoders))
    everything = [found for one in measured for found in one.outcomes.values()]
    if min(found.mean_forwards for found in everything) <= FEW_FORWARDS:
        few = as_svg(measured, decoders, most_forwards=FEW_FORWARDS)
        page.with_name(f"{page.stem}-few.svg").write_text(few)


def digest(tested: list[Problem]) -> str:
    """Of the problems' questions, in order."""
    texts = "\n".join(problem.question for problem in tested)
    return hashlib.sha256(texts.encode()).hexdigest()


def run(args: argparse.Namespace) -> int:
    """Run the job; the exit code."""
    try:
        if args.limit < 1:
            raise ValueError(f"--limit is {args.limit}; at least 1 is needed")
        if len(set(args.labels)) < 2:
            raise ValueError(f"--labels are both {args.labels[0]!r}; give two names")
        page = Path(args.page) if args.page else None
        text = page.read_text() if page else ""
        output, decoders = Storage(args.output), decoders_named(args.only)
        tested = distinct(args.limit, args.seed)
        measured = []
        for checkpoint, label in zip((args.plain, args.soft), args.labels, strict=True):
            stored = Stored(output, label, fingerprint(checkpoint), digest(tested))
            found = measure_model(checkpoint, stored, tested, decoders, args.gen_length)
            measured.append(ModelOutcomes(label, found))
        made = blocks(measured, decoders, args)
        if page:
            page.write_text(fill(text, made, str(page)))
            draw(page, measured, decoders)
        else:
            print("\n\n".join(made.values()))
    except (ValueError, OSError) as error:
        print(f"compare_models: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("compare_models: interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED
    return OK


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m jobs.tiny.compare_models")
    made.add_argument("plain", metavar="PLAIN", help="checkpoint trained without soft feedback")
    made.add_argument("soft", metavar="SOFT", help="checkpoint trained with it; tiny")
    made.add_argument("--labels", nargs=2, default=LABELS, help="names of the two")
    made.add_argument("--output", required=True, help="folder of the outcomes")
    made.add_argument("--limit", type=int, default=1000, help="problems [1000]")
    made.add_argument("--seed", type=int, default=11, help="of the problems [11]")
    made.add_argument("--gen-length", type=int, default=64, help="canvas in tokens [64]")
    keys = [decoder.key for decoder in DECODERS]
    made.add_argument("--only", nargs="+", choices=keys, metavar="DECODER", help=", ".join(keys))
    made.add_argument("--page", metavar="PAGE.md", help="whose marked blocks are filled [stdout]")
    return made


if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))
