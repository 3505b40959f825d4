"""Drops rows whose prompt and answer repeat those of an earlier row: exactly, or nearly by MinHash.

Both are deterministic, and keep the first row of equal ones.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.selecting.conversations import exchanges
from pipeline.selecting.run_rows import Mask, RunRows

DIGEST_BYTES = 16
NUM_PERMUTATIONS = 128
"""Numbers in a signature; the similarity of two rows is the share of equal ones, with a standard
error of 0.04 or less."""
SHINGLE_WORDS = 5
"""Words in a row that are compared as one, as in the deduplication of datatrove and text-dedup."""
ROWS_AT_A_TIME = 4096
# Scripts without spaces (Chinese, Japanese kana): each character is a word.
_WORD = re.compile(r"[぀-ヿ㐀-䶿一-鿿]|[^\W぀-ヿ㐀-䶿一-鿿]+|[^\w\s]")


def keep_distinct(rows: RunRows, kept: Mask) -> Mask:
    """Of the kept rows with the same prompt and the same answer, byte for byte, the first.

    Two texts are the same where their BLAKE2b digests of 128 bits are; about 50 bytes a row.
    """
    numbers = np.flatnonzero(kept)
    digests = np.empty((len(numbers), DIGEST_BYTES // 8), np.uint64)
    for n, (prompt, answer) in enumerate(_texts(rows, kept)):
        # With a length in front no two pairs are one text.
        text = f"{len(prompt)}\n{prompt}{answer}".encode(errors="surrogatepass")
        digest = hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()
        digests[n] = np.frombuffer(digest, np.uint64)
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # Stable: equal ones stay in their order.
    ordered = digests[order]
    again = np.zeros(len(numbers), np.bool_)
    again[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    return _without(kept, numbers[again])


def keep_dissimilar(rows: RunRows, kept: Mask, threshold: float) -> Mask:
    """Drops each kept row that is similar to an earlier kept one: whose word 5-grams have a Jaccard
    similarity of at least `threshold`, as MinHash signatures estimate it.

    Rows are compared with the first row of each band that they share (locality-sensitive hashing),
    so a chain of similar rows keeps its first. Signatures are in a temporary file, 512 bytes a row;
    about 100 bytes a row are in memory.
    Raises ValueError where datasketch is not installed.
    """
    num_bands, band_size = bands(threshold)
    numbers = np.flatnonzero(kept)
    if not len(numbers):
        return kept
    with tempfile.TemporaryFile(prefix="lrd-select-") as file:
        shape = (len(numbers), NUM_PERMUTATIONS)
        signatures = np.memmap(file, np.uint32, "w+", shape=shape)
        for n, texts in enumerate(_texts(rows, kept)):
            signatures[n] = _signature("\n".join(texts))
        repeats = np.zeros(len(numbers), np.bool_)
        for band in range(num_bands):
            columns = slice(band * band_size, (band + 1) * band_size)
            repeats |= _similar_to_first(signatures, columns, threshold)
        del signatures
    return _without(kept, numbers[repeats])


def _similar_to_first(signatures: Any, columns: slice, threshold: float) -> Mask:
    """Which rows are similar to the first row that is equal to them in these columns."""
    band = np.ascontiguousarray(signatures[:, columns])
    cells = band.view(np.dtype((np.void, band.itemsize * band.shape[1]))).ravel()
    _, firsts, groups = np.unique(cells, return_index=True, return_inverse=True)
    first = firsts[groups]
    repeats = np.zeros(len(first), np.bool_)
    candidates = np.flatnonzero(first != np.arange(len(first)))
    for at in range(0, len(candidates), ROWS_AT_A_TIME):
        some = candidates[at : at + ROWS_AT_A_TIME]
        equal = (signatures[some] == signatures[first[some]]).mean(axis=1)
        repeats[some] = equal >= threshold
    return repeats


def _texts(rows: RunRows, kept: Mask) -> Iterator[tuple[str, str]]:
    """Prompt and answer of each kept row; of a chat all turns, as JSON."""
    for row in exchanges(rows, kept):
        prompt = row.prompt
        yield (
            prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False),
            row.answer,
        )


def words(text: str) -> list[str]:
    """Words and single symbols, in lower case; spaces do not count."""
    return _WORD.findall(text.casefold())


def _signature(text: str) -> Any:
    from datasketch import MinHash

    found = words(text)
    starts = range(max(1, len(found) - SHINGLE_WORDS + 1))
    shingles = {" ".join(found[start : start + SHINGLE_WORDS]).encode() for start in starts}
    sketch = MinHash(NUM_PERMUTATIONS, seed=1, scheme="affine32")
    sketch.update_batch(sorted(shingles))
    return sketch.hashvalues


def bands(threshold: float) -> tuple[int, int]:
    """Number and size of bands with which rows of this similarity meet, by datasketch. Raises
    ValueError where that is not installed."""
    try:
        from datasketch import MinHashLSH
    except ImportError as error:
        raise ValueError(
            f"--dedupe minhash needs datasketch ({error}): pip install 'lrd-pipeline[select]'"
        ) from error
    if threshold == 1:  # datasketch's integral has no width there.
        return 1, NUM_PERMUTATIONS
    index = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS, weights=(0.1, 0.9))
    return index.b, index.r


def _without(kept: Mask, numbers: Any) -> Mask:
    left = kept.copy()
    left[numbers] = False
    return left
