# SPDX-License-Identifier: Apache-2.0
"""Saves and loads quantised models: a safetensors file and a JSON description. Nothing in them is executed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from anynpu._check import dtype_name, path_of, require, require_module
from anynpu._read import read_object, read_tensors
from anynpu.nn import LAYERS, QuantizedLayer, QuantizedLinear, QuantMoE, RoutedExperts
from anynpu.quantization.moe_blocks import is_experts, is_moe_block, router_of, sizes_of_experts

DESCRIPTION = "anynpu_quantized.json"
METHOD = "anynpu"  # the name of this package's layers in a configuration of transformers
_FORMAT = "anynpu-quantized"
_VERSION = 2
_TENSOR_FILE = re.compile(r"model-[0-9a-f]{16}\.safetensors")
_PARTIAL = re.compile(rf"\.({_TENSOR_FILE.pattern}|{re.escape(DESCRIPTION)})\.[0-9a-f]{{8}}\.partial")


def save_quantized(model: torch.nn.Module, folder: str | os.PathLike) -> None:
    """Writes the state of a quantised model to ``folder``, which is made if it is missing.

    The tensors go to a new ``model-*.safetensors``, then ``anynpu_quantized.json`` is replaced in one step, then older
    tensor files are removed: a reader, or a crash, at any moment sees either the old model or the new one. Of several
    that save to a folder at a time one waits for the other.

    Raises:
        TypeError: the state holds something other than tensors.
        ValueError: a tensor has no data (device meta).
    """
    require_module("save_quantized", model)
    folder = path_of("save_quantized", "folder", folder)
    tensors, aliases = _distinct(model.state_dict())
    file = f"model-{secrets.token_hex(8)}.safetensors"
    description = {
        "format": _FORMAT,
        "version": _VERSION,
        "tensors": file,
        "layers": described_layers(model),
        "aliases": aliases,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder) as directory:
        _replace(folder / file, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
        _replace(folder / DESCRIPTION, lambda path: path.write_text(json.dumps(description, indent=1) + "\n"))
        os.fsync(directory)  # the new names are on the disk before the old ones go
        for old in folder.iterdir():
            if old.name != file and (is_own_tensors(old) or _PARTIAL.fullmatch(old.name)):
                old.unlink()


def is_own_tensors(path: Path) -> bool:
    """Whether a file is named as the tensors of :func:`save_quantized` are."""
    return _TENSOR_FILE.fullmatch(path.name) is not None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """The folder, open, while no other save writes to it: it would take the new tensors for older ones."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # of file systems that have no locks
            fcntl.flock(directory, fcntl.LOCK_EX)
        yield directory
    finally:
        os.close(directory)


def described_layers(model: torch.nn.Module) -> dict[str, dict]:
    """What files say of the quantised layers of a model, by name."""
    modules = model.named_modules(remove_duplicate=False)
    layers = {name: module for name, module in modules if isinstance(module, QuantizedLayer)}
    return {name: {"kind": type(layer).__name__, **layer.fields()} for name, layer in layers.items()}


def _distinct(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors that share no memory, and which names stand for the same one."""
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple, str] = {}
    storages = set()
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"save_quantized: {name} must be a tensor, got {type(tensor).__name__}")
        require("save_quantized", not tensor.is_meta, f"{name} has no data (device meta)")
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() > 0 and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        storage = tensor.untyped_storage().data_ptr()
        tensor = tensor.detach().cpu().contiguous()
        tensors[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return tensors, aliases


def _replace(path: Path, write) -> None:
    """Writes a file that appears under its name only when it is complete and on the disk."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        write(partial)
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_quantized(model: torch.nn.Module, folder: str | os.PathLike) -> torch.nn.Module:
    """Loads what :func:`save_quantized` wrote into ``model``, a float (or quantised) model of the same architecture.

    The model may be on the meta device. Names, shapes and dtypes of every tensor are compared with the model before
    anything in it is changed.

    Returns:
        The model; a model that is itself one Linear is not changed, use the result.

    Raises:
        FileNotFoundError: no description, or not its tensors.
        ValueError: a description or tensors that are damaged or do not fit the model.
        TypeError: a tensor of another dtype.
    """
    require_module("load_quantized", model)
    return restore(model, *read_saved(path_of("load_quantized", "folder", folder)))


Saved = tuple[dict[str, dict], dict[str, torch.Tensor]]  # what is said of the layers, by name, and all tensors


def read_saved(folder: Path) -> Saved:
    """What :func:`save_quantized` wrote; it may write again meanwhile.

    Raises:
        FileNotFoundError: no description, or not its tensors.
        ValueError: they are damaged.
    """
    description, state = _read_files(folder)
    for name, same in description["aliases"].items():
        require(
            "load_quantized", same in state and name not in state, f"alias {name} of {same} does not fit the tensors"
        )
    state.update({name: state[same] for name, same in description["aliases"].items()})
    return description["layers"], state


def _read_files(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """A description and its tensors, which are removed when the description is replaced."""
    description = _read_description(folder / DESCRIPTION)
    while True:
        try:
            return description, read_tensors("load_quantized", folder / description["tensors"])
        except FileNotFoundError:
            before, description = description, _read_description(folder / DESCRIPTION)
            if before["tensors"] == description["tensors"]:
                raise


def restore(model: torch.nn.Module, described: dict[str, dict], state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """:func:`load_quantized` of what :func:`read_saved` returns."""
    layers = empty_layers(model, described)
    others = _check_state(model, layers, state)
    for name, layer in layers.items():
        layer.load_state_dict({key: state[_join(name, key)] for key in layer.state_dict()}, assign=True)
        layer.require_sound()
    return _install(model, layers, others)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _read_description(path: Path) -> dict:
    op = "load_quantized"
    description = read_object(op, path)
    kind = (description.get("format"), description.get("version"))
    require(op, kind == (_FORMAT, _VERSION), f"{path.name} must be {_FORMAT} version {_VERSION}, got {kind}")
    file = description.get("tensors")
    require(op, isinstance(file, str) and _TENSOR_FILE.fullmatch(file) is not None, f"tensors names no file: {file!r}")
    layers, aliases = description.get("layers"), description.get("aliases")
    require(op, isinstance(layers, dict) and isinstance(aliases, dict), "layers and aliases must be objects")
    require(op, all(isinstance(same, str) for same in aliases.values()), "aliases must hold names")
    for name, fields in layers.items():
        require_fields(op, name, fields)
    return description


def require_fields(op: str, name: str, fields: object) -> None:
    """What a file says of a layer is the kind of one and the types of its fields.

    Raises:
        ValueError: it is not.
    """
    known = isinstance(fields, dict) and isinstance(fields.get("kind"), str) and fields["kind"] in LAYERS
    require(op, known, f"layer {name!r} must have a kind of {', '.join(LAYERS)}, got {fields!r}")
    expected = {"kind": str, **LAYERS[fields["kind"]].FIELDS}
    typed = {key: type(value) for key, value in fields.items()} == expected
    require(op, typed, f"layer {name!r} must have the fields {', '.join(expected)}, got {fields!r}")


def empty_layers(model: torch.nn.Module, layers: dict[str, dict]) -> dict[str, QuantizedLayer]:
    """Layers without data, by name; a layer that the model uses under several names stays one.

    Raises:
        ValueError: the model has no such layer, or one of other sizes.
    """
    distinct: dict[tuple, QuantizedLayer] = {}
    result = {}
    for name, fields in layers.items():
        try:
            present = model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"load_quantized: the model has no layer {name!r}") from error
        key = (present, *fields.values())
        if key not in distinct:
            distinct[key] = _empty_layer(present, name, fields)
        result[name] = distinct[key]
    return result


def _require_linear(present: torch.nn.Module, name: str, fields: dict) -> None:
    op = "load_quantized"
    linear = isinstance(present, (torch.nn.Linear, QuantizedLinear))
    require(op, linear, f"layer {name!r} must be a Linear, got {type(present).__name__}")
    want, got = (fields["in_features"], fields["out_features"]), (present.in_features, present.out_features)
    require(op, want == got, f"layer {name!r} must have (in_features, out_features) = {want}, got {got}")


def _require_moe(present: torch.nn.Module, name: str, fields: dict) -> None:
    op = "load_quantized"
    known = isinstance(present, QuantMoE) or is_moe_block(present)
    require(op, known, f"layer {name!r} must be a block of experts, got {type(present).__name__}")
    router = present.router if isinstance(present, QuantMoE) else router_of(present).weight
    want, got = (fields["experts"], fields["hidden"]), tuple(router.shape)
    require(op, want == got, f"layer {name!r} must have (experts, hidden) = {want}, got {got}")


def _require_experts(present: torch.nn.Module, name: str, fields: dict) -> None:
    op = "load_quantized"
    known = isinstance(present, RoutedExperts) or is_experts(present)
    require(op, known, f"layer {name!r} must be experts of a block, got {type(present).__name__}")
    want = tuple(fields[key] for key in ("experts", "hidden", "intermediate"))
    got = sizes_of_experts(present)
    require(op, want == got, f"layer {name!r} must have (experts, hidden, intermediate) = {want}, got {got}")


_REQUIRE_PLACE = {QuantMoE: _require_moe, RoutedExperts: _require_experts}


def _empty_layer(present: torch.nn.Module, name: str, fields: dict) -> QuantizedLayer:
    kind = LAYERS[fields["kind"]]
    _REQUIRE_PLACE.get(kind, _require_linear)(present, name, fields)
    options = {key: value for key, value in fields.items() if key != "kind"}
    return kind(**options, device="meta").train(present.training)


def _check_state(
    model: torch.nn.Module, layers: dict[str, QuantizedLayer], state: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Compares names, shapes and dtypes; returns the tensors that belong to no quantised layer."""
    op = "load_quantized"
    replaced = {_join(name, key) for name in layers for key in model.get_submodule(name).state_dict()}
    others = {name: tensor for name, tensor in model.state_dict().items() if name not in replaced}
    expected = dict(others)
    for name, layer in layers.items():
        expected.update({_join(name, key): tensor for key, tensor in layer.state_dict().items()})
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    require(op, not missing, f"the file lacks {len(missing)} tensors of the model, the first is {missing[:1]}")
    require(op, not unknown, f"the file has {len(unknown)} tensors that the model lacks, the first is {unknown[:1]}")
    for name, want in expected.items():
        got = state[name]
        require(op, want.shape == got.shape, f"{name} must have shape {tuple(want.shape)}, got {tuple(got.shape)}")
        if want.dtype != got.dtype:
            raise TypeError(f"{op}: {name} must be {dtype_name(want.dtype)}, got {dtype_name(got.dtype)}")
    return {name: state[name] for name in others}


def _install(
    model: torch.nn.Module, layers: dict[str, QuantizedLayer], others: dict[str, torch.Tensor]
) -> torch.nn.Module:
    for name, layer in layers.items():
        device = next(iter(model.get_submodule(name).state_dict().values())).device
        layer.to("cpu" if device.type == "meta" else device)
        layer.prepack()
        parent, _, child = name.rpartition(".")
        if name:
            setattr(model.get_submodule(parent), child, layer)
    if "" in layers:
        return layers[""]
    on_meta = any(tensor.is_meta for tensor in model.state_dict().values())
    model.load_state_dict(others, strict=False, assign=on_meta)
    return model
