# SPDX-License-Identifier: Apache-2.0
"""Storage formats of the shim's tensors: a note on the storage, never another arrangement of its bytes.

A tensor cast to FRACTAL_NZ keeps its logical shape, dtype and bytes. The note is what ``get_npu_format`` reads, and
where a prepacked copy of a weight is kept: both live on the storage, so that views, ``nn.Parameter``, ``detach`` and
``state_dict`` share them and they are freed with it. A copy (``clone``, ``deepcopy``, ``torch.load``) is ND again.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable

import torch

from anynpu.compat.device import mark


class Format(enum.IntEnum):
    """Published format numbers."""

    UNDEFINED = -1
    NCHW = 0
    NHWC = 1
    ND = 2
    NC1HWC0 = 3
    FRACTAL_Z = 4
    NC1HWC0_C04 = 12
    HWCN = 16
    NDHWC = 27
    FRACTAL_NZ = 29
    NCDHW = 30
    NDC1HWC0 = 32
    FRACTAL_Z_3D = 33


def _has_notes(tensor: torch.Tensor) -> bool:
    # The tensors of graph capture are subclasses; what is noted on an example must not end in a graph. Those of vmap,
    # which look like ordinary ones, have no storage.
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def format_of(tensor: torch.Tensor) -> Format:
    """The format noted on the storage of ``tensor``; ND without a note."""
    return getattr(tensor.untyped_storage(), "_anynpu_format", Format.ND) if _has_notes(tensor) else Format.ND


def is_nz(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is in FRACTAL_NZ."""
    return format_of(tensor) == Format.FRACTAL_NZ


def set_format(tensor: torch.Tensor, format: Format) -> torch.Tensor:
    """Notes ``format`` on the storage of ``tensor``; a tensor with fewer than two axes has no FRACTAL_NZ and stays."""
    if _has_notes(tensor) and not (format == Format.FRACTAL_NZ and tensor.dim() < 2):
        tensor.untyped_storage()._anynpu_format = format
    return tensor


def cast(tensor: torch.Tensor, format: Format) -> torch.Tensor:
    """A tensor of the same contents with ``format``: itself when nothing changes."""
    if format == format_of(tensor) or (format == Format.FRACTAL_NZ and tensor.dim() < 2):
        return tensor
    return set_format(mark(tensor.clone()), format)


class Prepacked:
    """What one view of a weight was prepacked to, and how to see that the weight has changed since."""

    SAMPLES = 64

    def __init__(self, weight: torch.Tensor, packed: torch.Tensor, matrix_shape: tuple[int, int]) -> None:
        self.packed = packed
        self.matrix_shape = matrix_shape
        self._version = None if weight.is_inference() else weight._version
        self.nbytes = nbytes = weight.numel() * weight.element_size()  # of the weight
        data = (ctypes.c_ubyte * nbytes).from_address(weight.data_ptr())
        # Writes through .data or NumPy, and to inference tensors, leave the version as it was: a few bytes spread over
        # the weight show a new one.
        self._samples = memoryview(data)[:: max(1, nbytes // self.SAMPLES)]
        self._sampled = self._samples.tobytes()

    def is_current(self, weight: torch.Tensor) -> bool:
        version = None if weight.is_inference() else weight._version
        return version == self._version and self._samples.tobytes() == self._sampled


def prepacked(
    weight: torch.Tensor, prepack: Callable[[torch.Tensor], tuple[torch.Tensor, tuple[int, int]]]
) -> Prepacked:
    """The prepacked copy of ``weight``, made by ``prepack`` at first use and again after the weight changed.

    ``prepack`` returns the copy and the shape of the matrix, (K, N). The copies of a storage are those of parts that
    make it up, however many, and of as much again: beyond that the oldest go, as where windows slide over a weight.
    """
    storage = weight.untyped_storage()
    if not hasattr(storage, "_anynpu_prepacked"):
        storage._anynpu_prepacked = {}
    entries = storage._anynpu_prepacked
    key = (weight.data_ptr(), weight.shape, weight.stride(), weight.dtype)
    entry = entries.get(key)
    if entry is None or not entry.is_current(weight):
        entry = Prepacked(weight, *prepack(weight))
        with _keeping:
            entries[key] = entry
            while sum(each.nbytes for each in entries.values()) > 2 * storage.nbytes():
                del entries[next(iter(entries))]
    return entry


_keeping = threading.Lock()
