"""The early stop's settings as one short text: `none`, `mean`, `max:patience=2`, `mean:gate=0.2`.

First the reduction of KL over positions, then what differs from Eq. 6. `of=change` holds for
refinement too, so it may stand behind `none`.
"""

from __future__ import annotations

from typing import Any

from lrd.config import DecodingConfig

OPTIONS = {
    "scope": "scope", "patience": "patience", "gate": "stop_max_entropy", "of": "monitor",
}  # fmt: skip
"""What may follow the reduction, and the field of DecodingConfig that it sets."""
FIELDS = ("early_stop", "reduction", *OPTIONS.values())
FORM = "none, or mean|max|sum with :scope=open, patience=N, gate=NATS, of=change behind it"


def monitor_settings(text: str) -> dict[str, Any]:
    """Fields of DecodingConfig, which checks their values.

    Raises ValueError for what is not a monitor.
    """
    reduction, _, rest = text.partition(":")
    settings: dict[str, Any] = {"early_stop": reduction != "none", "monitor": "kl"}
    if reduction == "none":
        known = {"of"}
    else:
        known = {*OPTIONS}
        settings |= {"reduction": reduction}
        settings |= {"scope": "block", "patience": 1, "stop_max_entropy": None}
    for part in filter(None, rest.split(",")):
        name, equals, value = part.partition("=")
        if name not in known or not equals:
            raise ValueError(f"monitor {text!r}: {part!r} is not known; write {FORM}")
        settings[OPTIONS[name]] = value
    return settings


def monitor_name(config: DecodingConfig) -> str:
    """The text that gives the config's early stop."""
    options = []
    if config.early_stop and config.scope != "block":
        options.append(f"scope={config.scope}")
    if config.early_stop and config.patience != 1:
        options.append(f"patience={config.patience}")
    if config.early_stop and config.stop_max_entropy is not None:
        options.append(f"gate={config.stop_max_entropy:g}")
    if config.monitor != "kl":
        options.append(f"of={config.monitor}")
    reduction = config.reduction if config.early_stop else "none"
    return ":".join(filter(None, [reduction, ",".join(options)]))
