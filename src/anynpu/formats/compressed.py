# SPDX-License-Identifier: Apache-2.0
"""Losslessly compressed int8 weights: format c8 of ``docs/formats.md``."""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from anynpu import _native
from anynpu._check import dtype_name, require, require_dtype, require_ints, require_type

_compress = _native.Call("weight_compress", tensors=4)
_decompress = _native.Call("weight_decompress", tensors=3, scalars="2i")

BLOCK_K = 256
BLOCK_N = 128
ENTRY_BYTES = 8


def _ceil_divide(value: int, by: int) -> int:
    return -(-value // by)


def index_bytes(n: int, k: int) -> int:
    """Length of the index of an ``(n, k)`` weight."""
    return _ceil_divide(k, BLOCK_K) * _ceil_divide(n, BLOCK_N) * ENTRY_BYTES


def most_bytes(n: int, k: int) -> int:
    """Length of the largest possible stream of an ``(n, k)`` weight: all of it stored as it is."""
    return _ceil_divide(n, 64) * 64 * _ceil_divide(k, 4) * 4


def info_of(n: int, k: int) -> torch.Tensor:
    """The info of an ``(n, k)`` weight, see :class:`CompressedWeight`; on the CPU."""
    return torch.tensor([8, 8, k, n, 1], device="cpu")


@dataclass(frozen=True)
class CompressedWeight:
    """An int8 weight ``(n, k)`` without its redundancy.

    Attributes:
        stream: int8 ``[c]``, the blocks.
        index: int8 ``[ceil(k / 256) * ceil(n / 128) * 8]``, an entry for each block.
        info: int64 ``[5]``: ``[8, 8, k, n, 1]``, what ``aclnnMatmulCompressDequant`` calls compressInfo.
    """

    stream: torch.Tensor
    index: torch.Tensor
    info: torch.Tensor

    @property
    def k(self) -> int:
        """Inputs of the layer."""
        return int(self.info[2])

    @property
    def n(self) -> int:
        """Outputs of the layer."""
        return int(self.info[3])

    @property
    def nbytes(self) -> int:
        """Bytes of stream and index."""
        return self.stream.numel() + self.index.numel()

    @property
    def bits_per_weight(self) -> float:
        """Of stream and index together."""
        return 8 * self.nbytes / (self.n * self.k)


class _Room(threading.local):
    """Where a thread writes streams whose length is not known yet: fresh memory costs as much as compressing."""

    _MOST_BYTES = 1 << 26  # that are kept

    def __init__(self) -> None:
        self._kept = bytearray()

    def get(self, size: int) -> torch.Tensor:
        """int8 ``[size]``, valid until the next call of this thread."""
        if size > self._MOST_BYTES:
            return torch.empty(size, dtype=torch.int8, device="cpu")
        if size > len(self._kept):
            self._kept = bytearray(size)
        return torch.frombuffer(self._kept, dtype=torch.int8, count=size)


_room = _Room()


def compress_weight(weight: torch.Tensor) -> CompressedWeight:
    """Compresses an int8 weight without loss; the bytes do not depend on the number of threads.

    The CPU does it; stream and index are on the device of ``weight``.

    Args:
        weight: int8 ``(n, k)``, any strides, not empty.

    Raises:
        TypeError: ``weight`` is not int8.
        ValueError: ``weight`` is not 2-D, or empty.

    >>> import torch
    >>> from anynpu.formats import compress_weight, decompress_weight
    >>> weight = torch.randint(-8, 8, (256, 512), dtype=torch.int8)
    >>> compressed = compress_weight(weight)
    >>> compressed.bits_per_weight < 4.1, torch.equal(decompress_weight(compressed), weight)
    (True, True)
    """
    op = "weight_compress"
    require_dtype(op, "weight", weight, (torch.int8,))
    shape = tuple(weight.shape)
    require(op, weight.dim() == 2 and weight.numel() > 0, f"weight must have shape (n, k), not empty, got {shape}")
    n, k = shape
    stream = _room.get(most_bytes(n, k))
    index = torch.empty(index_bytes(n, k), dtype=torch.int8, device="cpu")
    used = torch.empty(1, dtype=torch.int64, device="cpu")
    _compress(weight.cpu(), stream, index, used)
    kept = stream[: int(used)].to(weight.device, copy=True)
    return CompressedWeight(kept, index.to(weight.device), info_of(n, k))


def decompress_weight(compressed: CompressedWeight) -> torch.Tensor:
    """The int8 weight ``(n, k)`` that was compressed, on the device of the stream; the CPU decodes.

    Raises:
        ValueError: stream, index or info are damaged, do not belong together, or come from another program.
    """
    op = "weight_decompress"
    require_type(op, "compressed", compressed, CompressedWeight, "a CompressedWeight")
    info = compressed.info
    # Sentences are written when they are needed: to print a tensor takes as long as to decode a weight.
    if info.dtype != torch.int64 or info.shape != (5,):
        raise ValueError(f"{op}: info must be int64 [5], got {dtype_name(info.dtype)} {list(info.shape)}")
    width, aligned, k, n, version = values = info.tolist()
    if (width, aligned, version) != (8, 8, 1) or k <= 0 or n <= 0:
        raise ValueError(f"{op}: info must be [8, 8, k, n, 1], got {values}")
    # Before memory for n x k values is asked for; the library has the exact rule.
    most = compressed.index.numel() // ENTRY_BYTES * BLOCK_K * BLOCK_N
    if n * k > most:
        raise ValueError(f"{op}: n * k of info must be at most the index's {most} values, got {n} * {k}")
    weight = _native.allocator(n * k)((n, k), (k, 1), torch.int8)
    stream, index = compressed.stream.cpu(), compressed.index.cpu()
    _decompress(stream, index, weight, scalars=(1, 0))  # 1: weight is dropped on an error
    return weight.to(compressed.stream.device)


def entropy_bits(weight: torch.Tensor) -> float:
    """Order-0 entropy of the int8 values, in bits a value: the bound of any code that treats them alike.

    >>> import torch
    >>> entropy_bits(torch.tensor([[0, 1], [1, 0]], dtype=torch.int8))
    1.0
    """
    counts = torch.bincount(weight.reshape(-1).to(torch.int16) + 128, minlength=256).double()
    share = counts[counts > 0] / counts.sum()
    return float(-(share * share.log2()).sum()) + 0.0


class Int8Codec:
    """The codec behind the interface of numcodecs: ``encode`` and ``decode`` of bytes, ``get_config``, ``from_config``.

    Args:
        row_length: values of one row (k); the data is seen as rows of it and its length must be a multiple.

    >>> codec = Int8Codec(row_length=64)
    >>> data = bytes(range(16)) * 256
    >>> blob = codec.encode(data)
    >>> len(blob) < len(data), codec.decode(blob) == data
    (True, True)
    """

    codec_id = "anynpu.c8"
    _header = struct.Struct("<8sQQQ")
    _magic = b"ANPUc8\x00\x01"

    def __init__(self, row_length: int) -> None:
        require_ints(self.codec_id, row_length=row_length)
        if row_length < 1:
            raise ValueError(f"{self.codec_id}: row_length must be at least 1, got {row_length}")
        self.row_length = row_length

    def encode(self, data: bytes | bytearray | memoryview) -> bytes:
        """Header, index and stream of int8 values."""
        raw = bytes(data)
        if not raw or len(raw) % self.row_length:
            raise ValueError(
                f"{self.codec_id}: data must be a multiple of row_length = {self.row_length}, not empty, got {len(raw)}"
            )
        weight = torch.frombuffer(bytearray(raw), dtype=torch.int8).reshape(-1, self.row_length)
        compressed = compress_weight(weight)
        header = self._header.pack(self._magic, compressed.n, compressed.k, compressed.stream.numel())
        return header + compressed.index.numpy().tobytes() + compressed.stream.numpy().tobytes()

    def decode(self, data: bytes | bytearray | memoryview) -> bytes:
        """The values that were encoded, whatever the row length of this codec."""
        raw = bytes(data)
        if len(raw) < self._header.size or raw[:8] != self._magic:
            raise ValueError(f"{self.codec_id}: data is not a version 1 blob of this codec")
        _, n, k, stream_bytes = self._header.unpack_from(raw)
        if n < 1 or k < 1 or max(n, k) > 1 << 30 or stream_bytes > most_bytes(n, k):
            raise ValueError(f"{self.codec_id}: the header is damaged: n {n}, k {k}, stream of {stream_bytes} bytes")
        expected = self._header.size + index_bytes(n, k) + stream_bytes
        if len(raw) != expected:
            raise ValueError(f"{self.codec_id}: a blob of n {n} and k {k} must have {expected} bytes, got {len(raw)}")
        rest = torch.frombuffer(bytearray(raw[self._header.size :]), dtype=torch.int8)
        index, stream = rest[: index_bytes(n, k)], rest[index_bytes(n, k) :]
        weight = decompress_weight(CompressedWeight(stream, index, info_of(n, k)))
        return weight.numpy().tobytes()

    def get_config(self) -> dict[str, object]:
        """What ``from_config`` needs to make this codec again."""
        return {"id": self.codec_id, "row_length": self.row_length}

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Int8Codec:
        """The codec of a configuration."""
        return cls(row_length=int(str(config["row_length"])))
