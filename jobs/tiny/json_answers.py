"""Answers as JSON: how many parse and fit a schema with `--schema` and without it.

    python -m jobs.tiny.json_answers --rows 500

Decodes the same prompts with the tiny model and with random weights of the same shape, each with
the schema and without, through `lrd generate`; counts by the library jsonschema what parses and
what fits. Prints a Markdown table, then one JSON line. Everything stays under --folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from jobs import cli
from jobs.tiny.accuracy import distinct
from lrd.models.registry import EMBEDDED

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 24},
        "amount": {"type": "integer", "minimum": 0},
        "price": {"type": "number"},
        "unit": {"enum": ["dollars", "cents", "pieces", "grams"]},
        "sure": {"type": "boolean"},
    },
    "required": ["name", "amount", "price", "unit", "sure"],
    "additionalProperties": False,
}


def random_checkpoint(folder: Path, name: str, seed: int) -> Path:
    """The named model's files with normal random weights in place of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(EMBEDDED[name], folder)
    generator = torch.Generator().manual_seed(seed)
    for file in folder.glob("*.safetensors"):
        weights = {
            key: value
            if value.dim() == 1
            else torch.randn(value.shape, generator=generator).to(value.dtype)
            * value.shape[-1] ** -0.5
            for key, value in load_file(file).items()
        }
        save_file(weights, file, metadata={"format": "pt"})
    return folder


def judged(text: str | None) -> str:
    """`fits`, `parses`, or `is not JSON`."""
    try:
        found = json.loads(text or "")
    except ValueError:
        return "is not JSON"
    return "fits" if jsonschema.Draft202012Validator(SCHEMA).is_valid(found) else "parses"


def measure(model: str, prompts: Path, out: Path, more: list[str]) -> dict[str, Any]:
    """One run: how many rows parse and fit, and its passes."""
    shutil.rmtree(out, ignore_errors=True)
    words = ["--input", str(prompts), "--output", str(out), "--model", model, "--replicas", "2"]
    code = cli.run(["generate", *words, *more])
    assert code == 0, code
    frame = pd.read_parquet(out / "data")
    counts = Counter(map(judged, frame["output_text"]))
    stored = int(frame["output_json"].notna().sum())
    assert "--schema" not in more or stored == counts["fits"]
    return {
        "rows": len(frame),
        "fits": counts["fits"],
        "parses": counts["fits"] + counts["parses"],
        "distinct": int(frame["output_text"].nunique()),
        "passes": float(frame["num_forwards"].mean()),
    }


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.tiny.json_answers")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--gen-length", type=int, default=96)
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--folder", default="runs/json-answers")
    parser.add_argument("--models", nargs="+", default=["tiny", "random weights"])
    args = parser.parse_args()
    folder = Path(args.folder)
    prompts, schema = folder / "prompts", folder / "schema.json"
    prompts.mkdir(parents=True, exist_ok=True)
    schema.write_text(json.dumps(SCHEMA, indent=2))
    asked = [
        f"{one.question} Answer as a JSON object with name, amount, price, unit, sure."
        for one in distinct(args.rows, args.seed)
    ]
    pd.DataFrame({"prompt": asked}).to_parquet(prompts / "prompts.parquet")
    models = {
        "tiny": "tiny",
        "random weights": str(random_checkpoint(folder / "random", "tiny", args.seed)),
    }
    forms: dict[str, list[str]] = {
        "--schema": ["--schema", str(schema), "--gen-length", str(args.gen_length)],
        "no schema": ["--gen-length", str(args.gen_length)],
    }
    found: dict[str, dict[str, Any]] = {}
    for model, form in product(args.models, forms):
        out = folder / f"{model.split()[0]}-{form.strip('-').split()[0]}"
        found[f"{model}, {form}"] = measure(models[model], prompts, out, forms[form])
    print("\n| model, form | rows | parse | fit the schema | different answers | passes |")
    print("|---|---|---|---|---|---|")
    for name, one in found.items():
        print(
            f"| {name} | {one['rows']} | {one['parses'] / one['rows']:.1%} | "
            f"{one['fits'] / one['rows']:.1%} | {one['distinct']} | {one['passes']:.1f} |"
        )
    print(json.dumps({"gen_length": args.gen_length, "found": found}))


if __name__ == "__main__":
    main()
