"""Records of published decoders that no setting here describes: listed with the reason."""

from __future__ import annotations

from collections import Counter

import pytest
from helpers.golden_decoders import Case, cases, note

GROWS = (
    "a canvas that grows by insertion or is cut at its end; here a row that needs more room begins "
    "anew in a longer one (max_gen_length)"
)
RANDOM = "columns behind the block drawn at random; here they are a fixed list"


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        *((case, GROWS) for decoder in ("daedal", "rho_eos") for case in cases(decoder)),
        *((case, RANDOM) for case in cases("dpad") if case.setting.startswith("gauss")),
    ],
    ids=str,
)
def test_these_records_are_not_compared(
    case: Case, reason: str, request: pytest.FixtureRequest
) -> None:
    note(request, case, 0, 0, Counter({reason: len(case.records)}))
    pytest.skip(reason)
