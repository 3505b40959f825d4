"""Sorts prompts into length buckets and gives them out as batches for replicas.

A bucket is the prompt tokens and the canvas positions that its slots hold. Prompts share a forward
pass only with prompts of about their length, so that little of the pass is padding.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline.rows import Bucket, Prompt


def bucket_of(num_tokens: int, max_tokens: int) -> int:
    """The bucket of a prompt: the next of 16, 32, 48, 64, 80, 96, 112, 128, 160, … tokens.

    Steps are an eighth of the next power of two and at least 16, so that padding stays below
    an eighth for long prompts and the number of shapes grows with the logarithm of the length.
    """
    assert 0 < num_tokens <= max_tokens
    step = max(16, (1 << (num_tokens - 1).bit_length()) // 8)
    return min(-(-num_tokens // step) * step, max_tokens)


MAX_LENGTHS = 128
"""Distinct lengths considered when buckets are chosen; the work grows with its square."""


def choose_lengths(num_tokens: Iterable[int], max_shapes: int) -> list[int]:
    """At most max_shapes buckets, ascending, that leave these prompts the least padding.

    By dynamic programming over the lengths that occur. Where there are more than `MAX_LENGTHS`,
    neighbouring lengths count as the longest of them. Empty where there are no prompts.
    """
    counts = Counter(num_tokens)
    if not counts:
        return []
    assert max_shapes >= 1
    step = -(-max(counts) // MAX_LENGTHS) if len(counts) > MAX_LENGTHS else 1
    coarse: Counter[int] = Counter()
    for length, count in counts.items():
        coarse[min(-(-length // step) * step, max(counts))] += count
    lengths = sorted(coarse)
    # prompts[j]: how many are among the first j lengths.
    prompts = [0]
    for length in lengths:
        prompts.append(prompts[-1] + coarse[length])
    # best[j]: tokens that slots hold for the first j lengths, and where the last bucket begins.
    best = [0.0] + [float("inf")] * len(lengths)
    begins: list[list[int]] = []
    for _ in range(min(max_shapes, len(lengths))):
        options = [
            min((best[i] + lengths[j - 1] * (prompts[j] - prompts[i]), i) for i in range(j))
            for j in range(1, len(lengths) + 1)
        ]
        best = [0.0] + [cost for cost, _ in options]
        begins.append([0] + [i for _, i in options])
    chosen, j = [], len(lengths)
    for begin in reversed(begins):
        if j == 0:
            break
        chosen.append(lengths[j - 1])
        j = begin[j]
    return sorted(chosen)


def fitting(num_tokens: int, lengths: Sequence[int]) -> int | None:
    """The shortest of these buckets, ascending, that holds so many tokens; None where none does."""
    at = bisect_left(lengths, num_tokens)
    return lengths[at] if at < len(lengths) else None


@dataclass(frozen=True, slots=True)
class Shapes:
    """The buckets that a run's rows go to."""

    prompts: list[int]
    """Prompt tokens of slots, ascending, for the rows that were sampled; longer ones get others."""
    canvases: list[int]
    """Canvas positions, likewise."""
    max_length: int
    """Positions of the model, less those by which canvases grow."""

    def bucket(
        self, num_tokens: int, gen_length: int, longer_canvas: Callable[[int], int]
    ) -> Bucket:
        """The bucket of a row, which with its own canvas has at most max_length positions.

        longer_canvas: canvas for a gen_length above all that were sampled.
        """
        room = self.max_length - gen_length
        prompt = fitting(num_tokens, self.prompts) or bucket_of(num_tokens, room)
        canvas = fitting(gen_length, self.canvases) or longer_canvas(gen_length)
        if num_tokens + canvas > self.max_length:
            return Bucket(min(prompt, room), gen_length)
        return Bucket(min(prompt, self.max_length - canvas), canvas)


class Buckets:
    """The prompts that wait, by bucket; gives out batches of one bucket each."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._waiting: dict[Bucket, deque[Prompt]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, prompts: Iterable[Prompt]) -> None:
        for prompt in prompts:
            self._waiting.setdefault(prompt.bucket, deque()).append(prompt)

    def put_back(self, prompts: Sequence[Prompt]) -> None:
        """Put prompts that were given out and not begun before all others."""
        for prompt in reversed(prompts):
            self._waiting.setdefault(prompt.bucket, deque()).appendleft(prompt)

    def take(self, last_bucket: Bucket | None, *, partial: bool) -> list[Prompt]:
        """The next batch for a replica; empty where no bucket fills one.

        A replica stays with its last bucket while that fills a batch. Otherwise it gets the
        longest bucket that does, so that short prompts are left for the end of a run. With
        `partial`, where no bucket fills a batch, it gets what there is of the bucket with the
        oldest row, so that no shard stays open for long.
        """
        full = [b for b, waiting in self._waiting.items() if len(waiting) >= self.batch_size]
        if last_bucket in full:
            bucket = last_bucket
        elif full:
            bucket = max(full, key=lambda b: (sum(b), b))
        elif partial and self._waiting:
            # Each bucket's first prompt is its oldest, or was given out before.
            firsts = {b: waiting[0] for b, waiting in self._waiting.items()}
            bucket = min(firsts, key=lambda b: (firsts[b].shard, firsts[b].index))
        else:
            return []
        assert bucket is not None
        waiting = self._waiting[bucket]
        batch = [waiting.popleft() for _ in range(min(self.batch_size, len(waiting)))]
        if not waiting:
            del self._waiting[bucket]
        return batch
