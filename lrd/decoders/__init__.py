"""Published decoders as rules of the one procedure, a file each; `README.md` has the table."""

from __future__ import annotations

from lrd.config import DecodingConfig
from lrd.decoders.caps import CommitCaps
from lrd.decoders.credit import CreditDecoding
from lrd.decoders.eoser import Eoser
from lrd.decoders.explore import ExploreThenExploit
from lrd.decoders.klass import Klass
from lrd.decoders.local_leap import LocalLeap
from lrd.decoders.prophet import Prophet
from lrd.decoders.rcr import Lowest
from lrd.decoders.rejection import Rejection
from lrd.decoders.rule import Rule
from lrd.decoders.saber import CommittedThreshold, Drop
from lrd.decoders.slow_fast import SlowFast
from lrd.decoders.soft_suffix import SoftSuffix
from lrd.decoders.wino import Shadow

__all__ = ["RULES", "Rule", "compares_beliefs", "rules_of"]

RULES: tuple[Rule, ...] = (
    CreditDecoding(),  # First: it changes the confidences that others compare.
    Eoser(),
    SlowFast(),
    Klass(),
    ExploreThenExploit(),
    LocalLeap(),
    CommittedThreshold(),
    CommitCaps(),  # Last of those that name commits: it caps what they name.
    Prophet(),
    Rejection(),
    SoftSuffix(),
    Drop(),
    Lowest(),
    Shadow(),
)
"""In the order in which they are asked."""


def rules_of(config: DecodingConfig) -> tuple[Rule, ...]:
    """The rules that the settings ask for."""
    return tuple(rule for rule in RULES if rule.applies(config))


def compares_beliefs(config: DecodingConfig) -> bool:
    """Whether a rule needs whole beliefs of the pass before; they are then read in small chunks."""
    return any(rule.compares(config) for rule in rules_of(config))
