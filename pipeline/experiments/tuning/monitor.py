"""The early stop's settings as one short text: `none`, `mean`, `max:patience=2`, `mean:gate=0.2`.

First the reduction of KL over positions, then what differs from Eq. 6.
"""

from __future__ import annotations

from typing import Any

from lrd.config import DecodingConfig

OPTIONS = {"scope": "scope", "patience": "patience", "gate": "stop_max_entropy"}
"""What may follow the reduction, and the field of DecodingConfig that it sets."""
FIELDS = ("early_stop", "reduction", *OPTIONS.values())
FORM = "none, or mean|max|sum with :scope=open, patience=N, gate=NATS behind it"


def monitor_settings(text: str) -> dict[str, Any]:
    """Fields of DecodingConfig, which checks their values.

    Raises ValueError for what is not a monitor.
    """
    if text == "none":
        return {"early_stop": False}
    reduction, _, rest = text.partition(":")
    settings: dict[str, Any] = {"early_stop": True, "reduction": reduction}
    settings |= {"scope": "block", "patience": 1, "stop_max_entropy": None}
    for part in filter(None, rest.split(",")):
        name, equals, value = part.partition("=")
        if name not in OPTIONS or not equals:
            raise ValueError(f"monitor {text!r}: {part!r} is not known; write {FORM}")
        settings[OPTIONS[name]] = value
    return settings


def monitor_name(config: DecodingConfig) -> str:
    """The text that gives the config's early stop."""
    if not config.early_stop:
        return "none"
    options = []
    if config.scope != "block":
        options.append(f"scope={config.scope}")
    if config.patience != 1:
        options.append(f"patience={config.patience}")
    if config.stop_max_entropy is not None:
        options.append(f"gate={config.stop_max_entropy:g}")
    return ":".join(filter(None, [config.reduction, ",".join(options)]))
