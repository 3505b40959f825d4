"""`package.module:factory` → a model of another package, checked against the protocol.

The factory itself finds and reads the weights.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
from pathlib import Path

from lrd.models.protocol import DiffusionModel

MEMBERS = (
    *("mask_id", "eos_id", "pad_id", "eot_id", "max_length", "tokenizer"),
    *("embedding_table", "embed", "logits"),
)


def is_plug(name: str) -> bool:
    """Whether a name has the form `package.module:factory`."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", name) is not None


def load_plug(name: str, device: str, dtype: str) -> DiffusionModel:
    """Import the module and call factory(device=…, dtype=…).

    Raises ValueError where the module or the factory does not exist, or the object lacks
    members of `DiffusionModel`. What the module or factory raises goes through.
    """
    module_name, _, factory_name = name.partition(":")
    _module_file(module_name)
    factory = getattr(importlib.import_module(module_name), factory_name, None)
    if not callable(factory):
        raise ValueError(f"{name}: the module {module_name} has no function {factory_name}")
    model: DiffusionModel = factory(device=device, dtype=dtype)
    missing = [member for member in MEMBERS if not hasattr(model, member)]
    if missing:
        raise ValueError(
            f"{name}: what it made has no {', '.join(missing)}; a model needs the members of "
            "lrd.models.protocol.DiffusionModel"
        )
    return model


def plug_fingerprint(name: str) -> str:
    """SHA-256 over the plug-in's name and its module's source, without weights that it reads."""
    digest = hashlib.sha256(name.encode())
    digest.update(_module_file(name.partition(":")[0]).read_bytes())
    return digest.hexdigest()


def _module_file(module_name: str) -> Path:
    try:
        spec = importlib.util.find_spec(module_name)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ValueError(
            f"no module {module_name} to import; install its package, or put its folder on "
            "PYTHONPATH (the working directory is not searched)"
        )
    return Path(spec.origin)
