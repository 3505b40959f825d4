"""Models for tests of the pipeline: the embedded one, with faults that a prompt's text calls."""

from __future__ import annotations

import os
from typing import Any

import torch

import lrd

POISON = "Zoe"
"""A prompt that names her kills its replica, where the model is `killing`."""


class _Faulty:
    """The tiny model; `fault` is called with the token ids of every prompt that is placed."""

    def __init__(self, device: str, dtype: str, fault: Any) -> None:
        self._model = lrd.load_model("tiny", device, dtype)
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        text = self._model.tokenizer.decode(ids.flatten().tolist())
        self._fault(text)
        return self._model.embed(ids)


def killing(device: str, dtype: str) -> Any:
    """Dies, like kill -9, whenever a prompt with POISON is placed."""

    def fault(text: str) -> None:
        if POISON in text:
            os._exit(9)

    return _Faulty(device, dtype, fault)


def raising(device: str, dtype: str) -> Any:
    """Cannot be loaded by a replica; the driver's look at it works."""
    if device == "meta":
        return lrd.load_model("tiny", device, dtype)
    raise RuntimeError("no weights here")


def half_nan(device: str, dtype: str) -> Any:
    """Gives NaN for prompts with POISON."""
    model = _Faulty(device, dtype, lambda text: None)
    inner = model._model

    class _Nan(_Faulty):
        def logits(self, embeds: Any, attention_mask: Any = None, columns: Any = None) -> Any:
            logits = inner.logits(embeds, attention_mask, columns)
            return logits.where(self._sick(embeds, attention_mask), torch.nan)

        def _sick(self, embeds: Any, attention_mask: Any) -> Any:
            # The name is found again by the embedding of its first token.
            name = inner.tokenizer.encode(POISON, add_special_tokens=False)
            row = inner.embedding_table[name[0]]
            has = ((embeds - row).abs().amax(-1) == 0).any(-1)
            return ~has[:, None, None]

    model.__class__ = _Nan
    return model
