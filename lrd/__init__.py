"""Latent Refinement Decoding without Ray or files.

model = lrd.load_model("tiny"); lrd.decode(model, ["…"], lrd.DecodingConfig.preset("fast"))

A name is imported when it is first used: `import lrd` and `lrd.DecodingConfig` load no torch.
`lrd.analysis` reads finished runs into pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrd import analysis
    from lrd.config import DecodingConfig
    from lrd.engine import Engine, Request, Sample, decode
    from lrd.models.checkpoint import load_model

__all__ = ["DecodingConfig", "Engine", "Request", "Sample", "analysis", "decode", "load_model"]

_MODULES = {
    "DecodingConfig": "lrd.config",
    "Engine": "lrd.engine",
    "Request": "lrd.engine",
    "Sample": "lrd.engine",
    "decode": "lrd.engine",
    "load_model": "lrd.models.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name == "analysis":
        return import_module("lrd.analysis")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_MODULES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
