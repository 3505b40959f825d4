"""CreditDecoding: a token gains what it was worth as the most probable one of earlier passes.

Of V tokens only those have credit that have been the most probable one of their position, so pairs
(token, credit) are kept and the rest of the belief enters as a sum.

    p′(v) = p(v)·(1 + credit(v))^α / Z′,   Z′ = 1 + Σ_v p(v)·((1 + credit(v))^α − 1)

Its most probable token is one of the pairs: the belief's own has just been credited.

Legend: B samples, K positions that a pass may read, n positions of a chunk, c pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrd.beliefs import EXCLUDED
from lrd.config import DecodingConfig
from lrd.decoders.rule import Chunk, Row, Rule
from lrd.one_pass import Pass

PAIRS = 8
"""Tokens of a position that have credit. A ninth takes the place of the least credited one, which
is then forgotten: at most a ninth of all credit, and credit ends with its block."""
NEAR = 1e-5
"""Positions that are this near to the surest one are committed with it, as by the authors' code."""


class CreditDecoding(Rule):
    """Tokens, confidences and doubts by the belief with credit; mixing, divergences and the
    probability that results show read the belief itself."""

    def applies(self, config: DecodingConfig) -> bool:
        return config.credit_alpha > 0

    def keeps(self, config: DecodingConfig) -> dict[str, Row]:
        shape = (config.window_tokens, PAIRS)
        return {"credit_ids": (shape, torch.long), "credit": (shape, torch.float32)}

    def measure(self, now: Pass, chunk: Chunk) -> dict[str, Tensor]:
        ids_nc, credit_nc = self._credited(now, chunk)
        has_nc = credit_nc > 0
        log_p_nc = chunk.log_p(ids_nc).clamp(min=EXCLUDED)
        p_nc = log_p_nc.exp() * has_nc
        gain_nc = now.config.credit_alpha * credit_nc.log1p()
        log_z_n = (p_nc * gain_nc.expm1()).sum(-1).log1p()
        score_nc = (log_p_nc + gain_nc).masked_fill(~has_nc, -torch.inf)
        best_n1 = score_nc.amax(-1, keepdim=True)
        last = torch.iinfo(torch.long).max
        token_n = ids_nc.masked_fill(score_nc < best_n1, last).amin(-1)
        token_n = torch.where(token_n == last, chunk.belief.token_N, token_n)  # Of NaN.
        # Σ p′·log p′ over all tokens: what the pairs change of −H, over Z′.
        raised_nc = p_nc * gain_nc.exp() * (log_p_nc + gain_nc) - p_nc * log_p_nc
        sum_n = (raised_nc.sum(-1) - chunk.belief.entropy_N) / log_z_n.exp()
        return {
            "credit_ids": ids_nc,
            "credit": credit_nc,
            "token_BK": token_n,
            "doubt_BK": log_z_n - sum_n,
            "confidence_BK": (best_n1[:, 0] - log_z_n).exp(),
            "probability_BK": chunk.log_p(token_n[:, None])[:, 0].exp(),
        }

    def _credited(self, now: Pass, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Tokens and their credit [n, c], this pass's most probable one credited."""
        config, kept, rows_n = now.config, now.state.kept, chunk.rows_n
        ids_nc = kept["credit_ids"].flatten(0, 1)[rows_n]
        credit_nc = kept["credit"].flatten(0, 1)[rows_n] * config.credit_decay
        first_n1 = now.is_first[rows_n // now.open_BK.shape[1]]
        credit_nc = torch.where(first_n1, 0, credit_nc)
        token_n1 = chunk.belief.token_N[:, None]
        same_nc = (ids_nc == token_n1) & (credit_nc > 0)
        known_n1 = same_nc.any(-1, keepdim=True)
        at_n1 = torch.where(
            known_n1,
            same_nc.byte().argmax(-1, keepdim=True),
            credit_nc.argmin(-1, keepdim=True),
        )
        before_n1 = torch.where(known_n1, credit_nc.gather(-1, at_n1), 0)
        gain_n1 = (-config.credit_gamma * chunk.belief.log_z_N[:, None]).exp()
        ids_nc = ids_nc.scatter(-1, at_n1, token_n1)
        return ids_nc, credit_nc.scatter(-1, at_n1, before_n1 + gain_n1)

    def weigh(self, now: Pass) -> None:
        for name in ("credit_ids", "credit"):
            now.state.kept[name] = torch.where(now.open_BK[..., None], now.reading.more[name], 0)

    def commits(self, now: Pass, named_BK: Tensor, open_BK: Tensor) -> Tensor:
        if now.config.confidence_threshold is None or now.config.steps is not None:
            return named_BK
        confidence_BK = now.reading.confidence_BK
        surest_B1 = torch.where(open_BK, confidence_BK, 0).amax(-1, keepdim=True)
        return named_BK | (open_BK & (confidence_BK >= surest_B1 - NEAR))
