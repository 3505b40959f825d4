"""Train the embedded model `tiny` from scratch, or a model for worksheets on from its weights.

    python -m jobs.tiny.train --output runs/tiny          # about an hour on two free cores
    python -m jobs.tiny.train --output runs/sheets --start lrd/models/tiny --sheets 0.8 ...

Two one-thread processes average their gradients over gloo. Training is plain masked
diffusion first (1/t-weighted cross-entropy on masked response positions); from `--soft-from`
on, every second batch puts soft embeddings of the model's own predictions (Eq. 3 and 4, one
extra pass without gradient) at the masked positions, which is what latent refinement will
feed the model when it decodes; from `--drills-from` on part of the samples are bare sums.
`--sheets` of the steps train on worksheets of two to six problems.
Writes OUTPUT/plain (the weights where soft batches begin) and OUTPUT/final in LLaDA's on-disk
format, and a checkpoint every few minutes: the same command continues.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from jobs.tiny.problems import Problem, drills, problems
from jobs.tiny.worksheets import Sheet, sheets
from lrd.beliefs import entropy, log_beliefs, mix_weight, soft_embedding
from lrd.models.families import LLADA
from lrd.models.transformer import Block, Transformer, TransformerConfig

SPECIAL = ["<|mask|>", "<|eos|>", "<|pad|>", "<|question|>", "<|answer|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<|answer|>"
    "{{ message.content }}<|eos|>{% else %}<|question|>{{ message.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|answer|>{% endif %}"
)
TABLE_ROWS = 752
CANVAS_LENGTHS = (64, 64, 96, 128)
DRILL_SHARE = 0.4
PROMPT_LENGTHS = (48, 80, 160)
"""Prompts are left-padded to one of these, so that few shapes are compiled."""
SHEET_SIZES = (2, 3, 4, 4, 5, 5, 6, 6)
SHEET_PROMPT_LENGTHS = range(64, 257, 16)
SHEET_CANVAS_LENGTHS = range(64, 257, 32)
LONGER_CANVAS = 0.2
"""Share of batches of sheets whose canvas is longer than the answers need."""


def train_tokenizer(folder: Path, seed: int) -> Tokenizer:
    """Byte-level BPE on training problems, digits single; writes the tokenizer files."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TABLE_ROWS,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = islice(problems("train", seed), 20_000)
    tokenizer.train_from_iterator((f"{p.question}\n{p.solution}" for p in sample), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "mask_token": "<|mask|>",
        "eos_token": "<|eos|>",
        "pad_token": "<|pad|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return tokenizer


def checkpoint_config() -> dict[str, object]:
    """`config.json` of the tiny model, in LLaDA's field names."""
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": 128,
        "n_layers": 5,
        "n_heads": 4,
        "n_kv_heads": 4,
        "mlp_hidden_size": 352,
        "max_sequence_length": 512,
        "vocab_size": TABLE_ROWS,
        "embedding_size": TABLE_ROWS,
        "rope": True,
        "rope_theta": 10000.0,
        "rope_full_precision": True,
        "rms_norm_eps": 1e-5,
        "layer_norm_type": "rms",
        "activation_type": "silu",
        "block_type": "llama",
        "include_bias": False,
        "include_qkv_bias": False,
        "weight_tying": False,
        "scale_logits": False,
        "mask_token_id": SPECIAL.index("<|mask|>"),
        "eos_token_id": SPECIAL.index("<|eos|>"),
        "pad_token_id": SPECIAL.index("<|pad|>"),
    }


def save_checkpoint(weights: dict[str, Tensor], folder: Path) -> None:
    """LLaDA's own tensor names, bf16, with `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = checkpoint_config()
    names = LLADA.tensor_names(LLADA.transformer_config(config))
    tensors = {
        names[ours]: value.to(torch.bfloat16).contiguous() for ours, value in weights.items()
    }
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def plain_attention(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
    """As `lrd.models.transformer.attention`; on a CPU in bf16 forward and backward of the fused
    kernel took 41 ms where this takes 13 (32 x 4 heads x 112 positions, one thread)."""
    assert key_mask is not None
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    bias = torch.zeros_like(key_mask, dtype=scores.dtype).masked_fill(~key_mask, -1e9)
    return (scores + bias).softmax(-1) @ value


LEAST_MASKED, MOST_MASKED = 4, 32
"""Of a worksheet's part: weights are shared by this many positions at least and at most."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Token ids that show where parts of an answer end: at the first `newline` behind an
    `answer`; at every newline where both are the same."""

    answer: int
    newline: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Marks:
        answer, newline = (tokenizer.token_to_id(token) for token in ("####", "Ċ"))
        if answer is None or newline is None:
            raise ValueError("the tokenizer has no #### or no newline token; start from `tiny`'s")
        return cls(answer, newline)


Ids = tuple[list[int], list[int]]
"""Token ids of a prompt and of its answer."""


class Batches:
    """Endless training batches of one process: problems of similar length together."""

    def __init__(self, tokenizer: Tokenizer, seed: int, tokens_per_batch: int) -> None:
        self.tokenizer = tokenizer
        self.stream: Iterator[Problem] = problems("train", seed)
        self.drills = drills(seed)
        self.drill_share = 0.0
        """Share of samples that are bare sums."""
        self.rng = random.Random(seed)
        self.canvas_lengths: Sequence[int] = CANVAS_LENGTHS
        self.tokens_per_batch = tokens_per_batch
        config = checkpoint_config()
        self.eos, self.pad = int(str(config["eos_token_id"])), int(str(config["pad_token_id"]))
        self.waiting: dict[int, list[Ids]] = {n: [] for n in PROMPT_LENGTHS}

    def next(self) -> tuple[Tensor, Tensor, int]:
        """ids [B, L], attention mask [B, L] and where the canvas starts."""
        canvas = self.rng.choice(self.canvas_lengths)
        while True:
            for prompt_length, waiting in self.waiting.items():
                size = self.tokens_per_batch // (prompt_length + canvas)
                if len(waiting) >= size:
                    batch, self.waiting[prompt_length] = waiting[:size], waiting[size:]
                    return self._collate(batch, prompt_length, canvas)
            self._read(256)

    def _read(self, count: int) -> None:
        num_drills = round(self.drill_share * count)
        chunk = list(islice(self.stream, count - num_drills)) + list(
            islice(self.drills, num_drills)
        )
        self.rng.shuffle(chunk)
        for prompt, answer in self._encode(chunk):
            fits = next(n for n in PROMPT_LENGTHS if len(prompt) <= n)
            self.waiting[fits].append((prompt, answer))

    def _encode(self, chunk: Sequence[Problem | Sheet]) -> Iterator[Ids]:
        prompts = self.tokenizer.encode_batch(
            [f"<|question|>{asked.question}<|answer|>" for asked in chunk]
        )
        answers = self.tokenizer.encode_batch([asked.solution for asked in chunk])
        for prompt, answer in zip(prompts, answers, strict=True):
            yield prompt.ids, answer.ids

    def _collate(
        self, batch: list[Ids], prompt_length: int, canvas: int
    ) -> tuple[Tensor, Tensor, int]:
        ids_BL = torch.full((len(batch), prompt_length + canvas), self.eos)
        mask_BL = torch.ones_like(ids_BL)
        for row, (prompt, answer) in enumerate(batch):
            ids_BL[row, : prompt_length - len(prompt)] = self.pad
            mask_BL[row, : prompt_length - len(prompt)] = 0
            ids_BL[row, prompt_length - len(prompt) : prompt_length] = torch.tensor(prompt)
            ids_BL[row, prompt_length : prompt_length + len(answer)] = torch.tensor(answer)
        return ids_BL, mask_BL, prompt_length


class SheetBatches(Batches):
    """Endless batches of worksheets: prompts of similar length and answers that need a canvas of
    similar length together, so that short sheets do not pay for long ones."""

    def __init__(self, tokenizer: Tokenizer, seed: int, tokens_per_batch: int) -> None:
        super().__init__(tokenizer, seed, tokens_per_batch)
        self.sheets: Iterator[Sheet] = sheets("train", seed, SHEET_SIZES)
        self.waiting_sheets: dict[tuple[int, int], list[Ids]] = {}

    def next(self) -> tuple[Tensor, Tensor, int]:
        """As `Batches.next`; the canvas is the shortest that the answers need, or a longer one."""
        while True:
            for (prompt_length, shortest), waiting in self.waiting_sheets.items():
                size = self.tokens_per_batch // (prompt_length + shortest)
                if len(waiting) >= size:
                    canvas = shortest
                    longer = [n for n in SHEET_CANVAS_LENGTHS if n > shortest]
                    if longer and self.rng.random() < LONGER_CANVAS:
                        canvas = self.rng.choice(longer)
                        size = self.tokens_per_batch // (prompt_length + canvas)
                    bucket = prompt_length, shortest
                    batch, self.waiting_sheets[bucket] = waiting[:size], waiting[size:]
                    return self._collate(batch, prompt_length, canvas)
            self._read(64)

    def _read(self, count: int) -> None:
        for prompt, answer in self._encode(list(islice(self.sheets, count))):
            if len(prompt) > SHEET_PROMPT_LENGTHS[-1] or len(answer) >= SHEET_CANVAS_LENGTHS[-1]:
                continue  # Rare: sheets are limited in characters, which tokens follow roughly.
            bucket = (
                next(n for n in SHEET_PROMPT_LENGTHS if len(prompt) <= n),
                next(n for n in SHEET_CANVAS_LENGTHS if len(answer) < n),
            )
            self.waiting_sheets.setdefault(bucket, []).append((prompt, answer))


def masked_positions(ids_BL: Tensor, start: int, suffix: bool) -> tuple[Tensor, Tensor]:
    """Canvas positions to mask [B, L], t stratified over the batch, and their weights 1/t."""
    eos_id = SPECIAL.index("<|eos|>")
    B, L = ids_BL.shape
    t_B1 = ((torch.arange(B) + torch.rand(B)) / B)[torch.randperm(B), None].clamp(min=1e-3)
    written_BL = ids_BL != eos_id
    written_BL[:, :start] = False
    masked_BL = torch.rand(B, L) < t_B1
    if suffix:
        # The last t of the answer and all that follows: a result beside its visible operands
        # is met here again and again, under random masks hardly ever.
        num_written_B1 = written_BL.sum(-1, keepdim=True)
        num_kept_B1 = ((1 - t_B1) * num_written_B1).long()
        suffix_BL = torch.arange(L) - start >= num_kept_B1
        masked_BL = torch.where(torch.arange(B)[:, None] % 2 == 0, suffix_BL, masked_BL)
    masked_BL[:, :start] = False
    return masked_BL, (1 / t_B1).expand(B, L)


def masked_sheets(ids_BL: Tensor, start: int, marks: Marks) -> tuple[Tensor, Tensor]:
    """Canvas positions of worksheets to mask [B, L] and their weights.

    A row's answers are masked in one of three ways: as `masked_positions` does without suffixes
    (a quarter of the rows); from one position on, as decoding meets them (a quarter); or each
    problem's from a position of its own on (half), which shows several results beside their
    visible operands in one pass.
    """
    eos_id = SPECIAL.index("<|eos|>")
    B, L = ids_BL.shape
    column_L = torch.arange(L)
    written_BL = (ids_BL != eos_id) & (column_L >= start)
    # A part ends with the first newline behind its ####; EOS belongs to the last part.
    num_marks_BL = ((ids_BL == marks.answer) & written_BL).long().cumsum(-1)
    is_newline_BL = (ids_BL == marks.newline) & written_BL
    ended_BL = torch.where(is_newline_BL, num_marks_BL, 0).cummax(-1).values
    part_BL = F.pad(ended_BL[:, :-1], (1, 0))
    whole_B1 = torch.arange(B)[torch.randperm(B), None] % 4 == 0
    part_BL = part_BL.masked_fill(whole_B1, 0)

    lengths_BP = torch.zeros(B, L, dtype=torch.long).scatter_add(1, part_BL, written_BL.long())
    share_BP = torch.rand(B, L)
    kept_BP = (share_BP * lengths_BP).long()
    rank_BL = written_BL.long().cumsum(-1) - 1 + (~written_BL & (column_L >= start)).long()
    first_BP = lengths_BP.cumsum(-1) - lengths_BP
    behind_BL = rank_BL - (first_BP + kept_BP).gather(1, part_BL)
    masked_BL = (behind_BL >= 0) & (column_L >= start)
    num_masked_BP = (lengths_BP - kept_BP).clamp(LEAST_MASKED, MOST_MASKED)
    weight_BL = (lengths_BP / num_masked_BP).gather(1, part_BL)
    # What stands far behind the first masked position depends on lengths that nobody knows yet.
    weight_BL = torch.where(written_BL & (behind_BL >= MOST_MASKED), 0.1 * weight_BL, weight_BL)
    weight_BL = torch.where(written_BL, weight_BL, 1.0)

    random_BL, random_weight_BL = masked_positions(ids_BL, start, suffix=False)
    is_random_B1 = (torch.arange(B)[:, None] % 4 == 0) & ~whole_B1
    return (
        torch.where(is_random_B1, random_BL, masked_BL),
        torch.where(is_random_B1, random_weight_BL, weight_BL),
    )


def diffusion_loss(
    model: Transformer,
    ids_BL: Tensor,
    mask_BL: Tensor,
    start: int,
    soft: bool,
    suffix: bool,
    marks: Marks | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy on masked canvas positions, and the share of masked tokens other
    than EOS that the model predicts right. marks: the batch is of worksheets."""
    mask_id, eos_id = SPECIAL.index("<|mask|>"), SPECIAL.index("<|eos|>")
    B, L = ids_BL.shape
    if marks is None:
        masked_BL, weight_BL = masked_positions(ids_BL, start, suffix)
    else:
        masked_BL, weight_BL = masked_sheets(ids_BL, start, marks)
    table_VD = model.embedding.weight
    embeds_BLD = model.embedding(ids_BL.masked_fill(masked_BL, mask_id))
    if soft:
        with torch.no_grad():
            logits = model.project(model.hidden(embeds_BLD, mask_BL)[masked_BL])
            log_p_NV = log_beliefs(logits, mask_id)
            r_f_N = (torch.rand(B, 1) * 0.6).expand(B, L)[masked_BL]
            alpha_N = mix_weight(entropy(log_p_NV), TABLE_ROWS, 1.0) * r_f_N
        soft_ND = soft_embedding(log_p_NV.exp(), alpha_N, table_VD, table_VD[mask_id])
        embeds_BLD = embeds_BLD.masked_scatter(masked_BL[..., None], soft_ND.to(embeds_BLD.dtype))
    logits_NV = model.project(model.hidden(embeds_BLD, mask_BL)[masked_BL])
    target_N = ids_BL[masked_BL]
    loss_N = F.cross_entropy(logits_NV.float(), target_N, reduction="none")
    weight_N = weight_BL[masked_BL]
    written_N = target_N != eos_id
    right = (logits_NV.argmax(-1) == target_N)[written_N].float().mean()
    return (loss_N * weight_N).sum() / (B * (L - start)), right


def average_gradients(model: nn.Module) -> None:
    """Mean over the processes, as one flat message; then clipped to norm 1."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    flat *= 1.0 / flat.norm().clamp(min=1.0)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Share of the peak: warm-up, constant, then linear to 0 over the last `decay` share."""
    decay_from = args.steps * (1 - args.decay)
    return min(1.0, (step + 1) / 100, (args.steps - step) / (args.steps - decay_from))


def draw_weights(model: Transformer) -> None:
    """Random weights to train from nothing."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            std = 1.0 if "embedding" in name else model.config.width**-0.5
            nn.init.normal_(parameter, std=std)
        if name.endswith(("output.weight", "down.weight", "head.weight")):
            # Blocks start as the identity, so that tokens are not drowned by random updates.
            nn.init.zeros_(parameter)


def load_weights_of(model: Transformer, folder: str) -> None:
    """The weights that `save_checkpoint` wrote to a folder, in float32."""
    weights = load_file(str(Path(folder) / "model.safetensors"))
    names = LLADA.tensor_names(model.config)
    model.load_state_dict({ours: weights[name].float() for ours, name in names.items()})


def train(rank: int, args: argparse.Namespace) -> None:
    """One process of two."""
    torch.set_num_threads(1)
    output = Path(args.output).resolve()
    meeting = f"file://{output}/meeting-{os.getppid()}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=args.processes)
    tokenizer = Tokenizer.from_file(str(output / "final" / "tokenizer.json"))
    config: TransformerConfig = LLADA.transformer_config(checkpoint_config())

    torch.manual_seed(args.seed)
    model = Transformer(config)
    if args.start:
        load_weights_of(model, args.start)
    else:
        draw_weights(model)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "blocks" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "blocks" in n)]
    # Without weight decay Muon's constant steps grow query and key until attention is a hard
    # choice (scores beyond 70): copying is learnt then, arithmetic never.
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1),
        torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    average = {name: p.detach().clone() for name, p in model.named_parameters()}

    step, seconds_before, progress = 0, 0.0, output / f"progress{rank}.pt"
    if progress.exists():
        saved = torch.load(progress, weights_only=True)
        step, seconds_before = saved["step"], saved["seconds"]
        model.load_state_dict(saved["model"])
        average = saved["average"]
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    seed = args.seed * 1000 + step * 10 + rank
    singles = Batches(tokenizer, seed, args.tokens // args.processes)
    marks = Marks.of(tokenizer)
    of_sheets = SheetBatches(tokenizer, seed, args.tokens // args.processes)
    of_drills = Batches(tokenizer, seed, args.tokens // args.processes)
    of_drills.drill_share, of_drills.canvas_lengths = 1.0, CANVAS_LENGTHS[:1]
    kinds: tuple[tuple[Batches, Marks | None], ...] = (
        (of_sheets, marks),
        (of_drills, Marks(marks.newline, marks.newline)),
        (singles, None),
    )
    kind_shares = (args.sheets, args.drills, 1 - args.sheets - args.drills)
    torch.manual_seed(seed)
    for block in model.blocks:
        assert isinstance(block, Block)
        block.attend = plain_attention
    if not args.no_compile:
        torch._dynamo.config.recompile_limit = 64
        for block in model.blocks:
            block.compile(dynamic=False)

    began = time.monotonic()
    shares = (args.soft_from, args.suffix_from, args.drills_from)
    soft_from, suffix_from, drills_from = (int(args.steps * share) for share in shares)
    losses: list[float] = []
    rights: list[float] = []
    while step < args.steps:
        if step == soft_from and rank == 0:
            save_checkpoint(average, output / "plain")
        soft = step >= soft_from and step % 2 == 1
        singles.drill_share = DRILL_SHARE if step >= drills_from else 0.0
        # Drawn by step, so that no process waits for another that has longer attention.
        (kind,) = random.Random(f"{args.seed}/{step}").choices(kinds, kind_shares)
        batches, parts = kind
        ids_BL, mask_BL, start = batches.next()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, right = diffusion_loss(
                *(model, ids_BL, mask_BL, start, soft, step >= suffix_from),
                parts,
            )
        loss.backward()
        average_gradients(model)
        share = learning_rate(step, args)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * args.peak * share
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        keep = min(args.ema, step / (step + 10))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                average[name].lerp_(parameter, 1 - keep)
        losses.append(loss.item())
        rights.append(right.item())
        if step % 100 == 0:
            seconds = seconds_before + time.monotonic() - began
            if rank == 0:
                print(
                    f"step {step} loss {sum(losses) / len(losses):.4f} "
                    f"tokens right {sum(rights) / len(rights):.3f} seconds {seconds:.0f}",
                    flush=True,
                )
            losses, rights = [], []
            assert math.isfinite(loss.item())
        if step % args.save_every == 0:
            state = {
                "step": step,
                "seconds": seconds_before + time.monotonic() - began,
                "model": model.state_dict(),
                "average": average,
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            }
            torch.save(state, progress.with_suffix(".part"))
            progress.with_suffix(".part").replace(progress)
            if rank == 0:
                save_checkpoint(average, output / "final")
    if rank == 0:
        save_checkpoint(average, output / "final")
    dist.destroy_process_group()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    made.add_argument("--output", required=True)
    made.add_argument("--steps", type=int, default=9000)
    made.add_argument("--tokens", type=int, default=8192, help="tokens a step, all processes")
    made.add_argument("--soft-from", type=float, default=0.33, help="share of the steps")
    made.add_argument("--suffix-from", type=float, default=0.0, help="share of the steps")
    made.add_argument("--drills-from", type=float, default=0.67, help="share of the steps")
    made.add_argument("--decay", type=float, default=0.7, help="share of the steps")
    made.add_argument("--start", metavar="CHECKPOINT", help="go on from its weights [from nothing]")
    made.add_argument(
        "--sheets", type=float, default=0.0, help="share of the steps that train on worksheets"
    )
    made.add_argument(
        "--drills",
        type=float,
        default=0.0,
        help="share of the steps that train on bare sums alone, each masked for itself",
    )
    made.add_argument("--peak", type=float, default=1.0, help="times the learning rates")
    made.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    made.add_argument("--ema", type=float, default=0.998)
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--processes", type=int, default=2)
    made.add_argument("--no-compile", action="store_true")
    return made


def prepare_tokenizer(args: argparse.Namespace) -> None:
    """Put the tokenizer into OUTPUT/final where it is not there: `--start`'s, or a new one."""
    final = Path(args.output) / "final"
    if (final / "tokenizer.json").exists():
        return
    if not args.start:
        train_tokenizer(final, args.seed)
        return
    final.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        shutil.copy(Path(args.start) / name, final / name)


def main() -> None:
    """Parse the command line and train."""
    args = parser().parse_args()
    prepare_tokenizer(args)
    # Its processes end with this one, whichever way it is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    spawn(train, args=(args,), nprocs=args.processes, daemon=True)


if __name__ == "__main__":
    main()
