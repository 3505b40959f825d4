"""S3's decoder by its authors' code: templates of fixed tokens and [MASK], 136 records."""

from __future__ import annotations

import json
import os
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from helpers.few import few
from safetensors.torch import load_file

from lrd import DecodingConfig, Engine, Request, load_model
from lrd.templates import Hole, Scaffold

SHARED = Path(os.environ.get("LRD_SHARED") or Path(__file__).parents[2] / "shared")
FOLDER = SHARED / "golden_decoders" / "s3"
SETTINGS = ["json_s16", "json_k4", "answer_s8", "answer_s28"]
"""Not answer_s4_k2, whose fourth pass commits all that is open: no setting says that."""
needs_records = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"{FOLDER} is absent; LRD_SHARED names the folder above it"
)


def scaffold_of(ids: list[int], mask_id: int) -> Scaffold:
    """The canvas of a template that is token ids; its fixed text is not read here."""
    parts: list[str | Hole] = []
    at = 0
    for is_open, run in groupby(ids, lambda index: index == mask_id):
        size = len(list(run))
        parts.append(Hole(at, at + size) if is_open else "fixed")
        at += size
    return Scaffold(tuple(ids), tuple(parts))


@needs_records
@pytest.mark.parametrize("name", few(SETTINGS, of_each=2))
def test_templates_are_decoded_as_s3_does(name: str) -> None:
    model: Any = load_model(str(SHARED / "golden_tiny"))
    found = json.loads((FOLDER / "records.json").read_text())
    tensors = load_file(FOLDER / "records.safetensors")
    setting = found["settings"][f"tiny.{name}"]
    template = setting["template"]
    num_open = template.count(model.mask_id)
    a_pass = setting["topk_remask"] or -(-num_open // setting["steps"])
    config = DecodingConfig.preset(
        "baseline",
        gen_length=len(template),
        tokens_per_step=a_pass,
        confidence="probability",
        stop_at_eos=False,
    )
    records = {r["name"]: r for r in found["records"] if r["setting"] == name}
    prompts = {record: tensors[f"{record}.prompt"].tolist() for record in records}
    engine = Engine(model, config, 8, max(map(len, prompts.values())))
    for record, prompt in prompts.items():
        engine.submit(Request(record, prompt, 0, scaffold_of(template, model.mask_id)))
    num_seen = 0
    while engine.busy:
        for sample in engine.step():
            num_seen += 1
            expected = {
                part: tensors[f"{sample.key}.{part}"].tolist()
                for part in ("output", "commit_step", "commit_step_stable")
            }
            assert sample.canvas == expected["output"]
            assert sample.num_forwards == records[sample.key]["num_forwards"]
            pairs = zip(
                sample.commit_step,
                expected["commit_step"],
                expected["commit_step_stable"],
                strict=True,
            )
            assert all(ours == theirs for ours, theirs, is_stable in pairs if is_stable)
    assert num_seen == len(records) >= 16
