# SPDX-License-Identifier: Apache-2.0
"""Finds ``torch_npu``, ``torchair`` and ``acl`` in this package, and says which submodules of theirs are missing.

Programs that ask for the installed distribution find torch_npu too, and torch the backends that it brings.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from os import PathLike
from pathlib import Path
from types import ModuleType

from anynpu.compat.errors import available_names, missing_text

FOLDER = str(Path(__file__).parent / "modules")
PACKAGES = ("torch_npu", "torchair", "acl")
DISTRIBUTIONS = ("torch-npu", "torch_npu", "torchair")
_BACKENDS = "[torch_dynamo_backends]\nnpu = torchair._backend:npu\nnpugraph_ex = torchair._backend:npugraph_ex\n"
_ALIAS = "torch_npu.dynamo.torchair"  # the same modules under a second name
_CANN = "triton.language.extra.cann"  # what the vendor's Triton adds to the language


class _AliasLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module("torchair" + spec.name.removeprefix(_ALIAS))
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec


class _Distribution(importlib.metadata.Distribution):
    """What ``importlib.metadata`` says of torch_npu."""

    def read_text(self, filename: str) -> str | None:
        if filename == "METADATA":
            version = importlib.import_module("torch_npu").__version__
            return f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {version}\n"
        return {"entry_points.txt": _BACKENDS}.get(filename)

    def locate_file(self, path: str | PathLike[str]) -> Path:
        return Path(FOLDER, path)


class Finder(importlib.metadata.DistributionFinder):
    """Serves the shim's packages from the folder ``modules``."""

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context | None = None
    ) -> Iterator[importlib.metadata.Distribution]:
        name = context and context.name
        return iter([_Distribution()] if name in (None, *DISTRIBUTIONS[:2]) else [])

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        if name == _CANN:
            return PathFinder.find_spec(name, [*path, str(Path(FOLDER).with_name("triton_ascend"))])
        if package not in PACKAGES:
            return None
        if name == _ALIAS or name.startswith(f"{_ALIAS}."):
            return ModuleSpec(name, _AliasLoader(), is_package=True)
        spec = PathFinder.find_spec(name, path if rest else [FOLDER])
        if spec is None:
            self._raise_missing(name)
        if spec.submodule_search_locations is None:
            spec.submodule_search_locations = []  # as for a package, ``from module import missing`` asks here
        return spec

    @staticmethod
    def _raise_missing(name: str) -> None:
        parent, _, leaf = name.rpartition(".")
        module = sys.modules[parent]
        available = available_names(parent, vars(module))
        # A name of its own: the import system drops a ModuleNotFoundError that carries the name it asked for.
        raise ImportError(missing_text(parent, leaf, available), name=parent)


def refuse_the_real_one() -> None:
    """Raises when the vendor's packages are installed or imported: two of them cannot share the device name."""
    for name in DISTRIBUTIONS:
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        _refuse(f"{distribution.metadata['Name']} {distribution.version} is installed ({distribution.locate_file('')})")
    for name in PACKAGES:
        spec = getattr(sys.modules.get(name), "__spec__", None) or PathFinder.find_spec(name)
        if spec is not None and spec.origin is not None and not spec.origin.startswith(FOLDER):
            _refuse(f"{name} is found at {spec.origin}")


def _refuse(reason: str) -> None:
    raise RuntimeError(
        f"install: the real {reason}; anynpu provides modules of the same names. "
        "Use the real one, or an environment without it."
    )
