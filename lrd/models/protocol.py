"""What decoding asks of a model. Any object with these members can be decoded.

Legend: B samples, L positions, C chosen columns, D width, V rows of the embedding table.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class DiffusionModel(Protocol):
    """A masked diffusion language model on one device."""

    mask_id: int
    eos_id: int
    pad_id: int
    eot_id: int | None
    """Ends a chat turn where the model has a token for it besides EOS."""
    max_length: int
    """Positions that prompt and canvas may take together."""
    tokenizer: Any
    """A transformers tokenizer, or None where the checkpoint has none."""

    @property
    def embedding_table(self) -> Tensor:
        """[V, D]: row v is the embedding of token v; its dtype and device are the model's."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [B, L] → embeddings [B, L, D]."""
        ...

    def logits(
        self,
        embeds: Tensor,
        attention_mask: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> Tensor:
        """Embeddings [B, L, D] → logits [B, L, V], or [B, C, V] at `columns` [B, C] alone.

        Aligned: the logits of position i predict the token of position i, whatever the
        model does inside. attention_mask [B, L] is 1 for real positions, 0 for padding.
        """
        ...
