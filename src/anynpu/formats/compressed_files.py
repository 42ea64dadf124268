# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with losslessly compressed int8 weights: safetensors files in, safetensors files out."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from anynpu._check import path_of, require, require_type
from anynpu._read import open_tensors, parse_object, read_tensor
from anynpu.formats.compressed import CompressedWeight, compress_weight, decompress_weight, entropy_bits

METADATA_KEY = "anynpu.c8"
GRANULARITIES = ("channel", "tensor")


@dataclass(frozen=True)
class Summary:
    """What became of one weight.

    Attributes:
        granularity: ``"int8"`` (it was int8), ``"channel"`` or ``"tensor"``: what a scale of a float weight covers.
        bits: of a weight, index included; ``entropy`` is the order-0 bound.
    """

    name: str
    shape: tuple[int, int]
    granularity: str
    bits: float
    entropy: float
    seconds: float

    @property
    def ratio(self) -> float:
        """Compressed size over int8 size."""
        return self.bits / 8


def quantize_symmetric(weight: torch.Tensor, granularity: str) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes and float32 scales, ``(n, 1)`` or ``(1, 1)``, of a float weight ``(n, k)``.

    >>> codes, scale = quantize_symmetric(torch.tensor([[0.5, -1.0], [2.0, 4.0]]), "channel")
    >>> codes.tolist()
    [[64, -127], [64, 127]]
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"quantize_symmetric: granularity must be {' or '.join(GRANULARITIES)}, got {granularity!r}")
    if not bool(weight.isfinite().all()):
        raise ValueError("quantize_symmetric: weight must be finite")
    value = weight.float()
    largest = value.abs().amax(1, keepdim=True) if granularity == "channel" else value.abs().max().reshape(1, 1)
    scale = largest / 127
    codes = torch.where(scale == 0, 0.0, value / scale).round().clamp(-127, 127)
    return codes.to(torch.int8), scale


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


class Compressor:
    """Compresses the int8 weights of a model, in the manner of msModelSlim's weight_compression.

    Args:
        weight: int8 weights ``(n, k)`` by layer name, with or without the suffix ``.weight``.

    >>> compressor = Compressor({"fc1.weight": torch.zeros(4, 8, dtype=torch.int8)})
    >>> weights, index, info = compressor.run()
    >>> info["fc1"].tolist()
    [8, 8, 8, 4, 1]
    """

    def __init__(self, weight: Mapping[str, torch.Tensor]) -> None:
        require_type("Compressor", "weight", weight, Mapping, "a mapping of layer names to weights")
        self._weight = {_layer(name): tensor for name, tensor in weight.items()}
        if len(self._weight) != len(weight):
            raise ValueError("Compressor: two weights belong to the same layer")
        self._compressed: dict[str, CompressedWeight] = {}

    def run(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Streams, indexes and infos by layer."""
        self._compressed = {layer: compress_weight(weight) for layer, weight in self._weight.items()}
        items = self._compressed.items()
        return (
            {layer: weight.stream for layer, weight in items},
            {layer: weight.index for layer, weight in items},
            {layer: weight.info for layer, weight in items},
        )

    def export_safetensors(self, path: str | os.PathLike[str]) -> None:
        """Writes ``<layer>.weight``, ``<layer>.index`` and ``<layer>.info`` of what :meth:`run` made."""
        if not self._compressed:
            raise ValueError("Compressor: call run() before export_safetensors()")
        tensors: dict[str, torch.Tensor] = {}
        for layer, weight in self._compressed.items():
            tensors |= _parts(layer, weight)
        entries = {f"{layer}.weight": {"layer": layer, "granularity": "int8"} for layer in self._compressed}
        _save(
            tensors, path_of("Compressor", "path", path), {METADATA_KEY: json.dumps({"version": 1, "weights": entries})}
        )


def _parts(layer: str, weight: CompressedWeight) -> dict[str, torch.Tensor]:
    return {f"{layer}.weight": weight.stream, f"{layer}.index": weight.index, f"{layer}.info": weight.info}


def _save(tensors: dict[str, torch.Tensor], target: Path, metadata: dict[str, str]) -> None:
    """All or nothing: a killed run leaves at most a hidden temporary folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        temporary = Path(folder) / target.name
        save_file(tensors, temporary, metadata)
        os.replace(temporary, target)


def _fingerprint(source: Path, quantize: str | None) -> dict[str, object]:
    status = source.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "quantize": quantize}


def _read_metadata(path: Path) -> dict | None:
    with open_tensors("c8", path) as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    return None if text is None else parse_object("c8", f"metadata {METADATA_KEY} of {path}", text)


def is_up_to_date(source: Path, target: Path, quantize: str | None) -> bool:
    """``target`` was made from ``source`` as it is now, with the same option."""
    if not target.exists():
        return False
    metadata = _read_metadata(target)
    return metadata is not None and metadata.get("source") == _fingerprint(source, quantize)


def _codes(tensor: torch.Tensor, quantize: str | None) -> tuple[torch.Tensor, torch.Tensor | None, str] | None:
    if tensor.dim() != 2 or tensor.numel() == 0:
        return None
    if tensor.dtype == torch.int8:
        return tensor, None, "int8"
    if quantize is None or tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return None
    return *quantize_symmetric(tensor, quantize), quantize


def compress_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    quantize: str | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> list[Summary]:
    """Compresses the 2-D int8 tensors of a safetensors file; the others are copied.

    Args:
        quantize: ``"channel"`` or ``"tensor"``: 2-D float tensors become int8 first (this step loses precision).
        progress: called with the name of each tensor when it is done.

    Returns:
        A summary of every compressed weight.

    Raises:
        FileNotFoundError: there is no ``source``.
        ValueError: ``source`` is damaged, compressed already or the target, or two tensors would get one name.
    """
    source, target = path_of("compress", "source", source), path_of("compress", "target", target)
    if source.resolve() == target.resolve():
        raise ValueError(f"compress: the output must be another file than the input, {source}")
    if _read_metadata(source) is not None:
        raise ValueError(f"compress: {source} is compressed already")
    tensors: dict[str, torch.Tensor] = {}
    entries: dict[str, dict[str, str]] = {}
    summaries = []
    with open_tensors("compress", source) as file:
        metadata = dict(file.metadata() or {})
        for name in file.keys():
            tensor = read_tensor("compress", file, name)
            coded = _codes(tensor, quantize)
            if coded is None:
                made = {name: tensor}
            else:
                codes, scale, granularity = coded
                started = time.perf_counter()
                weight = compress_weight(codes)
                seconds = time.perf_counter() - started
                made = _parts(_layer(name), weight)
                if scale is not None:
                    made[f"{_layer(name)}.weight_scale"] = scale
                entries[name] = {"layer": _layer(name), "granularity": granularity}
                shape, bits = (weight.n, weight.k), weight.bits_per_weight
                summaries.append(Summary(name, shape, granularity, bits, entropy_bits(codes), seconds))
            if clash := made.keys() & tensors.keys():
                raise ValueError(f"compress: two tensors of {source} would be called {sorted(clash)[0]}")
            tensors |= made
            progress(name)
    record = {"version": 1, "weights": entries, "source": _fingerprint(source, quantize)}
    _save(tensors, target, metadata | {METADATA_KEY: json.dumps(record)})
    return summaries


def compressed_weights(path: Path) -> Iterator[tuple[str, str, CompressedWeight]]:
    """Name, granularity and parts of every compressed weight of a file."""
    record = _require_metadata(path)
    with open_tensors("c8", path) as file:
        for name, entry in record["weights"].items():
            parts = [read_tensor("c8", file, f"{entry['layer']}.{part}") for part in ("weight", "index", "info")]
            yield name, entry["granularity"], CompressedWeight(*parts)


def _require_metadata(path: Path) -> dict:
    record = _read_metadata(path)
    if record is None:
        raise ValueError(f"{path} holds no weights compressed by anynpu")
    if record.get("version") != 1:
        raise ValueError(f"{path} was written by a newer version of anynpu: {record.get('version')}")
    weights = record.get("weights")
    entries = weights.values() if isinstance(weights, dict) else [None]
    known = all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("layer", "granularity"))
        for entry in entries
    )
    require("c8", known, f"metadata {METADATA_KEY} of {path} must have layer and granularity of every weight")
    return record


def decompress_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    progress: Callable[[str], None] = lambda name: None,
) -> int:
    """The inverse of :func:`compress_file`; quantised weights come back as int8 beside their ``weight_scale``.

    Returns:
        The number of weights that were decompressed.

    Raises:
        FileNotFoundError: there is no ``source``.
        TypeError, ValueError: ``source`` is damaged, not compressed or the target.
    """
    source, target = path_of("decompress", "source", source), path_of("decompress", "target", target)
    if source.resolve() == target.resolve():
        raise ValueError(f"decompress: the output must be another file than the input, {source}")
    record = _require_metadata(source)
    restored = {}
    for name, _, weight in compressed_weights(source):
        restored[name] = decompress_weight(weight)
        progress(name)
    parts = {f"{entry['layer']}.{part}" for entry in record["weights"].values() for part in ("weight", "index", "info")}
    with open_tensors("decompress", source) as file:
        metadata = {key: value for key, value in (file.metadata() or {}).items() if key != METADATA_KEY}
        names = [name for name in file.keys() if name not in parts]
        tensors = {name: read_tensor("decompress", file, name) for name in names}
    _save(tensors | restored, target, metadata)
    return len(restored)
