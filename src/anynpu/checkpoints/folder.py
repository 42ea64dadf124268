# SPDX-License-Identifier: Apache-2.0
"""The files of a model folder as its producer wrote them: a configuration and tensors by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from anynpu._check import require
from anynpu._read import open_tensors, read_object, read_tensor, shard_names

OP = "load_checkpoint"
CONFIG = "config.json"
_SINGLE = "model.safetensors"  # which transformers prefers to an index


@dataclass(frozen=True)
class Tensors:
    """Tensors of open safetensors files, read when they are asked for.

    Attributes:
        files: by the name of each tensor, the file that holds it.
    """

    files: dict[str, safe_open]

    def read(self, name: str) -> torch.Tensor:
        """One tensor.

        Raises:
            ValueError: the file is damaged.
        """
        return read_tensor(OP, self.files[name], name)

    def only(self, chosen: Callable[[str], bool]) -> Tensors:
        """Those whose names are chosen."""
        return Tensors({name: file for name, file in self.files.items() if chosen(name)})

    def require_float_weights(self) -> None:
        """Refuses weights of integers, which transformers would take for their values.

        Raises:
            TypeError: a tensor named ``weight`` is of another kind.
        """
        weights = [name for name in self.files if name.rpartition(".")[2] == "weight"]
        for name in weights:
            dtype = self.files[name].get_slice(name).get_dtype()
            if "F" not in dtype:  # F32, BF16, ..., unlike I8, U8, BOOL
                raise TypeError(f"{OP}: {name} must be of floats in a folder that is not quantised, got {dtype}")

    def by_module(self) -> dict[str, set[str]]:
        """Of every module, the last parts of the names of its tensors."""
        modules: dict[str, set[str]] = {}
        for name in self.files:
            module, _, own = name.rpartition(".")
            modules.setdefault(module, set()).add(own)
        return modules

    def of_module(self, module: str, own: set[str]) -> dict[str, torch.Tensor]:
        """The tensors of a module by the last parts of their names."""
        return {key: self.read(f"{module}.{key}") for key in sorted(own)}


@contextmanager
def open_folder(folder: Path) -> Iterator[Tensors]:
    """The tensors of all safetensors files of a folder, or of those that its index names.

    Raises:
        FileNotFoundError: no safetensors file, or one that the index names is missing.
        ValueError: damaged files, an index that names files outside the folder or other tensors than the files hold,
            a tensor in two files.
    """
    with ExitStack() as stack:
        files: dict[str, safe_open] = {}
        for path in _paths(folder):
            opened = stack.enter_context(open_tensors(OP, path))
            for name in opened.keys():
                require(OP, name not in files, f"the tensor {name!r:.80} must be in one file, got a second in {path}")
                files[name] = opened
        for index in _indexes(folder):
            differing = sorted(read_object(OP, index)["weight_map"].keys() ^ files.keys())
            require(OP, not differing, f"{index} must list the tensors of its files, got other names: {differing[:3]}")
        yield Tensors(files)


def _indexes(folder: Path) -> list[Path]:
    """The index, if there is one, but not what was left of an older model beside the only file of a newer one."""
    found = sorted(folder.glob("*.safetensors.index.json"))
    require(OP, len(found) <= 1, f"{folder} must have one index, got {[path.name for path in found]}")
    single = (folder / _SINGLE).exists()
    return [index for index in found if not single or _SINGLE in shard_names(OP, index)]


def _paths(folder: Path) -> list[Path]:
    for index in _indexes(folder):
        return [folder / name for name in sorted(shard_names(OP, index))]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickled = sorted(path.name for suffix in ("bin", "pt", "pth") for path in folder.glob(f"*.{suffix}"))
        reason = f"; {pickled[0]} may be a pickle, which could run code, and is not read" if pickled else ""
        raise FileNotFoundError(f"{OP}: {folder} holds no safetensors file{reason}")
    return found
