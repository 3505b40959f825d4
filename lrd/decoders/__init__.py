"""Published decoders as rules of the one procedure, a file each; `README.md` has the table."""

from __future__ import annotations

from lrd.config import DecodingConfig
from lrd.decoders.rule import Rule

__all__ = ["RULES", "Rule", "rules_of"]

RULES: tuple[Rule, ...] = ()
"""In the order in which they are asked."""


def rules_of(config: DecodingConfig) -> tuple[Rule, ...]:
    """The rules that the settings ask for."""
    return tuple(rule for rule in RULES if rule.applies(config))
