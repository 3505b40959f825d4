"""Loss of checkpoints by `jobs.tiny.train` on held-out problems, with [MASK] alone and with soft
embeddings at the masked positions.

    python -m jobs.tiny.heldout_loss runs/plain/final lrd/models/tiny

All see the same batches and masks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer

from jobs.tiny.problems import problems
from jobs.tiny.train import Batches, diffusion_loss
from lrd import load_model
from lrd.models.checkpoint import LoadedModel
from pipeline.markdown import table

TOKENS_A_BATCH = 4096


def heldout(folder: str, soft: bool, num_batches: int, seed: int) -> tuple[float, float]:
    """Mean loss (as in training) and share of masked tokens other than EOS that are right."""
    model = load_model(folder)
    assert isinstance(model, LoadedModel)
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    batches = Batches(tokenizer, seed, TOKENS_A_BATCH)
    batches.stream = problems("test", seed)
    torch.manual_seed(seed)
    found = []
    for _ in range(num_batches):
        ids_BL, mask_BL, start = batches.next()
        with torch.no_grad():
            loss, right = diffusion_loss(
                model.transformer, ids_BL, mask_BL, start, soft, suffix=True
            )
        found.append((loss.item(), right.item()))
    return sum(loss for loss, _ in found) / len(found), sum(r for _, r in found) / len(found)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folders", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--batches", type=int, default=60, help="of 4,096 tokens [60]")
    parser.add_argument("--seed", type=int, default=999)
    args = parser.parse_args()
    rows = []
    for folder in args.folders:
        cells = [folder]
        for soft in (False, True):
            loss, right = heldout(folder, soft, args.batches, args.seed)
            cells += [f"{loss:.4f}", f"{right:.3f}"]
        rows.append(cells)
    print(table(["checkpoint", "loss, [MASK]", "right", "loss, soft", "right"], rows))


if __name__ == "__main__":
    main()
