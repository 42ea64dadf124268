# SPDX-License-Identifier: Apache-2.0
"""Makes transformers, which ``import anynpu`` does not import, know anynpu's layers."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_MODELS = "transformers.modeling_utils"


def register_when_imported() -> None:
    """Registers :class:`anynpu.AnynpuConfig` now, or as soon as transformers loads its models' class."""
    if _MODELS in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterImport())


def _register() -> None:
    importlib.import_module("anynpu.checkpoints.hf_quantizer")
    importlib.import_module("anynpu.checkpoints.pretrained_models")


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds one module as others do, and has :func:`_register` called when it was loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _MODELS:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((each for each in found if each is not None), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                _register()

            spec.loader.exec_module = load_and_register
        return spec
