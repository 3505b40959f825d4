"""The interface that decoding needs of a model; any object with these members can be used.

Legend: B samples, L positions, C chosen columns, N chosen positions of B·L, D width,
V rows of the embedding table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

if TYPE_CHECKING:
    from torch import Tensor

    from lrd.models.kv_cache import KVCache, Window


class DiffusionModel(Protocol):
    """A masked diffusion language model on one device."""

    mask_id: int
    eos_id: int
    """Ends an answer; fills what `stop_at_eos` leaves open. More such ids: see `eos_ids`."""
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


class SplitModel(DiffusionModel, Protocol):
    """A model whose head can be called for a few positions at a time. Optional: with a large
    vocabulary it saves the memory of whole logits, and the head's work at committed positions.
    """

    def hidden(self, embeds: Tensor, attention_mask: Tensor | None, at: Tensor) -> Tensor:
        """The states [N, D] that `head` takes, aligned as `logits`, at the positions b·L + l [N]
        of the embeddings [B, L, D] alone."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """States [N, D] → logits [N, V], a tensor that the caller may change."""
        ...


class CachedModel(SplitModel, Protocol):
    """A model that can keep keys and values, and compute some columns alone. Optional: settings
    with a block cache or a suffix pattern need it."""

    feeds_before: int
    """Columns before a block that a pass of the block must feed: 1 where the states of the
    position before predict a position (Dream), else 0."""

    def new_cache(self, num_rows: int, num_positions: int) -> KVCache:
        """An empty cache of so many rows, each of up to `num_positions` columns."""
        ...

    def hidden_kept(
        self,
        embeds: Tensor,
        positions: Tensor,
        num_positions: int,
        key_mask: Tensor | None,
        at: Tensor,
        window: Window | None,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """The states [N, D] that `head` takes, aligned as `logits`, at the flat indices r·C + c [N]
        of the embeddings [R, C, D] of some columns, whose positions [R, C] are below
        `num_positions`.

        window: where their keys and values are kept, and which kept ones are attended to; None:
        the fed columns attend to each other and nothing is kept. key_mask [R, P]: True for places
        that a row attends to, or [R, C, P]: for those that each of its columns does; None: all.
        spans: instead of a mask, each row's own numbers of fed
        columns and of places that they attend to, of which it has no others; what lies behind
        repeats the row's last column. With one thread a row then computes what it does
        alone, to the bit.
        """
        ...


def eos_ids(model: DiffusionModel) -> tuple[int, ...]:
    """All token ids that end an answer, `eos_id` first.

    A model may have a member `eos_ids` that holds them. Without it, or where that lacks `eos_id`
    (a wrapper that changes `eos_id` and passes on the rest), there is `eos_id` alone.
    """
    more = tuple(getattr(model, "eos_ids", ()))
    if model.eos_id not in more:
        return (model.eos_id,)
    return (model.eos_id, *(index for index in more if index != model.eos_id))


def wants_fixed_shapes(model: DiffusionModel) -> bool:
    """Whether passes should have few shapes and read nothing on the host: on devices other than the
    CPU, where reading a tensor waits for the device, and for a model that is compiled."""
    return model.embedding_table.device.type != "cpu" or bool(getattr(model, "compiled", False))


def replays_graphs(model: DiffusionModel) -> bool:
    """Whether each shape of a pass is captured as a graph, so that there should be very few."""
    return bool(getattr(model, "replays_graphs", False))


def is_split(model: DiffusionModel) -> TypeGuard[SplitModel]:
    """Whether the model's class defines both `hidden` and `head`. A wrapper that changes `logits`
    and forwards other members does not, and its `logits` must not be bypassed."""
    return hasattr(type(model), "hidden") and hasattr(type(model), "head")


def is_cached(model: DiffusionModel) -> TypeGuard[CachedModel]:
    """Whether the model can keep keys and values, and compute some columns alone."""
    return not missing_for_cache(model)


CACHE_METHODS = ("hidden", "head", "new_cache", "hidden_kept")


def missing_for_cache(model: DiffusionModel) -> list[str]:
    """Members of `CachedModel` that a model lacks. Methods are looked for in its class, as by
    `is_split`."""
    methods = [name for name in CACHE_METHODS if not hasattr(type(model), name)]
    return methods if hasattr(model, "feeds_before") else [*methods, "feeds_before"]
