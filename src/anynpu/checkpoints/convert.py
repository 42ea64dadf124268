# SPDX-License-Identifier: Apache-2.0
"""Writes models as the folders that other programs load."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from anynpu._check import path_of, require
from anynpu._read import read_object
from anynpu.checkpoints.cache_scales import cache_tensors, read_scales
from anynpu.checkpoints.compressed_tensors import CompressedTensorsWriter
from anynpu.checkpoints.experts import divide_experts, float_experts, name_in_files, routers
from anynpu.checkpoints.folder import CONFIG
from anynpu.checkpoints.load import Progress, load
from anynpu.checkpoints.model import empty_model
from anynpu.checkpoints.msmodelslim import DESCRIPTION, MsModelSlimWriter
from anynpu.kv_scales import KVScales
from anynpu.nn import CompressedLinear, QuantizedLayer, QuantizedLinear, QuantLinear
from anynpu.quantization import save_quantized

_OP = "convert_checkpoint"
_SHARD_BYTES = 4 << 30
_SIDE_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
               "generation_config.json", "chat_template*", "LICENSE*")  # fmt: skip


def convert_checkpoint(
    source: str | os.PathLike, target: str | os.PathLike, to: str, progress: Progress = lambda name: None
) -> int:
    """Writes a model that :func:`load_checkpoint` reads as another kind of folder; codes and scales stay as they are.

    The folder appears under its name only when it is complete. The tokenizer's files are copied. Scales of an INT8 KV
    cache (:class:`KVScales` saved beside the model, the type C8 of msModelSlim) go along to ``"msmodelslim"`` and
    ``"anynpu"``; ``"compressed-tensors"`` has none.

    Args:
        source: a folder for :func:`load_checkpoint`.
        target: the folder to write, which must not exist.
        to: ``"anynpu"`` (:func:`save_quantized`), ``"msmodelslim"`` (vllm-ascend) or ``"compressed-tensors"`` (vLLM).
        progress: called with the name of each module that was read or written.

    Returns:
        The number of quantised layers.

    Raises:
        FileExistsError: ``target`` exists.
        TypeError, ValueError: what :func:`load_checkpoint` refuses, or a layer for which the layout has no place.
    """
    source, target = path_of(_OP, "source", source), path_of(_OP, "target", target)
    require(_OP, to in WRITERS, f"to must be one of {', '.join(WRITERS)}, got {to!r}")
    if target.exists():
        raise FileExistsError(f"{_OP}: {target} exists and is not overwritten")
    model = load(source, None, progress)
    quantized = any(isinstance(module, QuantizedLayer) for module in model.modules())
    require(_OP, quantized, f"{source} must hold quantised layers, got floats alone")
    config = read_object(_OP, source / CONFIG) if source.is_dir() else model.config.to_dict()
    config.pop("quantization_config", None)
    config["tie_word_embeddings"] = model.config.tie_word_embeddings
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        folder = Path(temporary) / target.name
        folder.mkdir()
        for path in _side_files(source):
            shutil.copyfile(path, folder / path.name)
        count = WRITERS[to](model, folder, config, read_scales(source, model), progress)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        os.rename(folder, target)
    return count


def _side_files(source: Path) -> list[Path]:
    return sorted(path for pattern in _SIDE_FILES for path in source.glob(pattern) if path.is_file())


def _layers(model: torch.nn.Module) -> dict[str, QuantizedLinear]:
    """The quantised linear layers by name in the model; a compressed one as it computes."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, CompressedLinear):
            module = QuantLinear.from_codes(module.codes(), module.scale, module.bias, module.input_scale)
        if isinstance(module, QuantizedLinear):
            layers[name] = module
    return layers


def _anynpu(
    model: torch.nn.Module, folder: Path, config: dict[str, Any], scales: KVScales | None, progress: Progress
) -> int:
    save_quantized(model, folder)
    if scales is not None:
        scales.save(folder)
    return sum(isinstance(module, QuantizedLayer) for module in model.modules())


def _msmodelslim(
    model: torch.nn.Module, folder: Path, config: dict[str, Any], scales: KVScales | None, progress: Progress
) -> int:
    cache = {} if scales is None else cache_tensors(model, scales)
    layers, int8_activations = _layers_for_files(model, config)
    writer = MsModelSlimWriter(layers, model.dtype, int8_activations)
    names = _write_tensors(model, layers, writer, folder, "quant_model_weight", progress, cache)
    (folder / DESCRIPTION).write_text(json.dumps(writer.description(names), indent=2) + "\n")
    return len(layers)


def _compressed_tensors(
    model: torch.nn.Module, folder: Path, config: dict[str, Any], scales: KVScales | None, progress: Progress
) -> int:
    layers, int8_activations = _layers_for_files(model, config)
    writer = CompressedTensorsWriter(int8_activations)
    _write_tensors(model, layers, writer, folder, "model", progress, {})
    floats = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    ignored = [name_in_files(model, name) for name in (*floats, *routers(model))]
    config["quantization_config"] = writer.quantization_config(ignored)
    return len(layers)


def _layers_for_files(model: torch.nn.Module, config: dict[str, Any]) -> tuple[dict[str, QuantizedLinear], set[str]]:
    """The quantised layers by name in files, and the names of int4 ones with int8 activations; divides experts."""
    int8_activations = divide_experts(model, lambda: empty_model(config, None, True, sys.maxsize))
    layers = {name_in_files(model, name): layer for name, layer in _layers(model).items()}
    return layers, {name_in_files(model, name) for name in int8_activations}


WRITERS = {"anynpu": _anynpu, "msmodelslim": _msmodelslim, "compressed-tensors": _compressed_tensors}


def _write_tensors(
    model: torch.nn.Module,
    layers: dict[str, QuantizedLinear],
    writer: MsModelSlimWriter | CompressedTensorsWriter,
    folder: Path,
    stem: str,
    progress: Progress,
    cache: dict[str, torch.Tensor],
) -> list[str]:
    """Writes the tensors of model and cache into safetensors files of some 4 GiB with an index; returns their names."""
    shards = _Shards(folder, stem)
    for name, layer in layers.items():
        try:
            own = writer.tensors(name, layer)
        except ValueError as error:
            raise ValueError(f"{_OP}: layer {name}: {error}") from error
        for key, tensor in own.items():
            shards.add(f"{name}.{key}", tensor)
        progress(name)
    for name, tensor in itertools.chain(_floats(model, layers), cache.items()):
        shards.add(name, tensor)
    return shards.close()


def _floats(model: torch.nn.Module, layers: dict[str, QuantizedLinear]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that belong to no quantised layer, tied ones once."""
    seen = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        for own, part in float_experts(model, name, tensor.detach()).items():
            own = name_in_files(model, own)
            if own.rpartition(".")[0] not in layers and tensor not in seen:
                yield own, part
        seen.add(tensor)


class _Shards:
    """Safetensors files that are named when their number is known."""

    def __init__(self, folder: Path, stem: str) -> None:
        self._folder, self._stem, self._bytes, self._total = folder, stem, 0, 0
        self._tensors: dict[str, torch.Tensor] = {}
        self._files: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """One more tensor."""
        if self._tensors and self._bytes + tensor.nbytes > _SHARD_BYTES:
            self._flush()
        self._tensors[name] = tensor.contiguous()
        self._bytes += tensor.nbytes
        self._total += tensor.nbytes

    def _flush(self) -> None:
        save_file(self._tensors, self._part(len(self._files)), {"format": "pt"})
        self._files.append(list(self._tensors))
        self._tensors, self._bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._folder / f"{self._stem}.{number}.partial"

    def close(self) -> list[str]:
        """Names the files and writes their index; returns the names of all tensors."""
        self._flush()
        count, weight_map = len(self._files), {}
        for i, names in enumerate(self._files):
            file = f"{self._stem}-{i + 1:05}-of-{count:05}.safetensors"
            os.rename(self._part(i), self._folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        (self._folder / f"{self._stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        return list(weight_map)
