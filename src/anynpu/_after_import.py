# SPDX-License-Identifier: Apache-2.0
"""Makes transformers and PEFT, which ``import anynpu`` does not import, know anynpu's layers."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# By a module of others, those of ours that extend it when they are imported.
_EXTENSIONS = {
    "transformers.modeling_utils": ("anynpu.checkpoints.hf_quantizer", "anynpu.checkpoints.pretrained_models"),
    "peft.tuners.lora.model": ("anynpu.nn.lora",),
}


def extend_when_imported() -> None:
    """Extends modules of others that are loaded now, and the rest as soon as they are."""
    for name in _EXTENSIONS.keys() & sys.modules.keys():
        _extend(name)
    sys.meta_path.insert(0, _AfterImport())


def _extend(name: str) -> None:
    for own in _EXTENSIONS[name]:
        importlib.import_module(own)


def call_when_loaded(spec: ModuleSpec, extend: Callable[[ModuleType], None]) -> None:
    """Gives the module of ``spec`` to ``extend`` as soon as it is loaded."""
    load = spec.loader.exec_module

    def load_and_extend(module: ModuleType) -> None:
        load(module)
        extend(module)

    spec.loader.exec_module = load_and_extend


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds modules that are extended as others do, and has :func:`_extend` called when one was loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _EXTENSIONS:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((each for each in found if each is not None), None)
        if spec is not None and spec.loader is not None:
            call_when_loaded(spec, lambda module: _extend(name))
        return spec
