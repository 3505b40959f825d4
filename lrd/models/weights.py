"""Safetensors files → a transformer's parameters, every tensor accounted for.

Knows nothing of configurations, hubs or tokenizers. Reads safetensors alone, never a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lrd.models.transformer import Transformer

INDEX = "model.safetensors.index.json"
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Stored types that a cast keeps the meaning of; packed integers are none."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, by its index or single."""
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index}: not an index of shards ({error!r})") from error
        _refuse_pickles(folder, [name for name in names if not name.endswith(".safetensors")])
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{index}: names {len(missing)} files that are not there: {', '.join(missing)}; "
                "download them again"
            )
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    _refuse_pickles(folder, [file.name for end in PICKLES for file in folder.glob(end)])
    raise ValueError(f"{folder}: no model.safetensors and no {INDEX}; pickles are never read")


def _refuse_pickles(folder: Path, names: list[str]) -> None:
    if names:
        raise ValueError(
            f"{folder}: pickled weights ({', '.join(sorted(names))}); they can run code when read "
            "and are refused. Convert them to safetensors"
        )


def load_weights(
    transformer: Transformer,
    tensor_names: Mapping[str, str],
    folder: Path,
    family_name: str,
    device: torch.device,
    dtype: torch.dtype,
    pack: Callable[[nn.Linear], None] | None = None,
) -> None:
    """Fill a transformer that is on the meta device, tensor by tensor.

    tensor_names: our parameter → the file's tensor. pack: called for every linear layer of a
    block as soon as its weight is there, so that full and packed weights never stand together.
    On the device `meta` every tensor is accounted for and none is read.
    Raises ValueError that names all tensors which are missing, extra, misshapen or no floats.
    """
    shapes = {name: list(p.shape) for name, p in transformer.named_parameters()}
    assert shapes.keys() == tensor_names.keys()
    ours = {theirs: name for name, theirs in tensor_names.items()}
    wanted = {theirs: shapes[name] for theirs, name in ours.items()}
    places = _account(weight_files(folder), wanted, folder, family_name)
    if device.type == "meta":
        return
    modules = dict(transformer.named_modules())
    for theirs, file in places.items():
        owner, _, attribute = ours[theirs].rpartition(".")
        value = _read(file, theirs, device, dtype)
        setattr(modules[owner], attribute, nn.Parameter(value, requires_grad=False))
        module = modules[owner]
        in_block = attribute == "weight" and owner.startswith("blocks.")
        if pack is not None and in_block and isinstance(module, nn.Linear):
            pack(module)


def _account(
    files: list[Path], wanted: Mapping[str, list[int]], folder: Path, family_name: str
) -> dict[str, Path]:
    """The file of every wanted tensor; ValueError with all differences at once."""
    places: dict[str, Path] = {}
    extra: list[str] = []
    misshapen: list[str] = []
    packed: list[str] = []
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                    if name not in wanted:
                        extra.append(name)
                        continue
                    if name in places:
                        extra.append(f"{name} (in {places[name].name} and again in {file.name})")
                    places[name] = file
                    stored = tensors.get_slice(name)
                    shape, kind = list(stored.get_shape()), stored.get_dtype()
                    if shape != wanted[name]:
                        misshapen.append(f"{name} is {shape}, not {wanted[name]}")
                    if kind not in FLOATS:
                        packed.append(f"{name} is {kind}")
        except SafetensorError as error:
            raise ValueError(
                f"{file}: not a whole safetensors file ({error}); download it again"
            ) from error
    missing = sorted(wanted.keys() - places.keys())
    kinds = {"missing": missing, "extra": extra, "misshapen": misshapen, "not floats": packed}
    parts = [
        f"{len(names)} {kind}: {'; '.join(sorted(names))}" for kind, names in kinds.items() if names
    ]
    if parts:
        raise ValueError(
            f"{folder}: the tensors are not those of config.json as {family_name}: "
            + ". ".join(parts)
            + ". Use the config.json that belongs to these weights, or download both again; "
            "weights quantised by others are not supported"
        )
    return places


def _read(file: Path, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """One tensor, copied. The file is mapped anew for each: a mapping's pages stay resident
    until it is closed, and would stand beside the copies made of them."""
    with safe_open(file, framework="pt") as tensors:
        value: Tensor = tensors.get_tensor(name).to(device=device, dtype=dtype, copy=True)
        return value
