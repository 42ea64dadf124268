# SPDX-License-Identifier: Apache-2.0
"""Changes modules of others that ``import anynpu`` does not import, now or as soon as they are loaded.

So transformers and PEFT know anynpu's layers.
"""

from __future__ import annotations

import functools
import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# By a module of others, those of ours that extend it when they are imported.
_OURS = {
    "transformers.modeling_utils": ("anynpu.checkpoints.hf_quantizer", "anynpu.checkpoints.pretrained_models"),
    "peft.tuners.lora.model": ("anynpu.nn.lora",),
}
_changes: dict[str, Callable[[ModuleType], None]] = {}


def extend_when_imported() -> None:
    """Has our modules imported where those that they extend are."""
    sys.meta_path.insert(0, _AfterImport())
    for name, ours in _OURS.items():
        change_when_imported(name, functools.partial(_import, ours))


def change_when_imported(name: str, change: Callable[[ModuleType], None]) -> None:
    """Gives a module to ``change``: now if it is loaded, and whenever it is."""
    _changes[name] = change
    if name in sys.modules:
        change(sys.modules[name])


def _import(ours: Sequence[str], module: ModuleType) -> None:
    for name in ours:
        importlib.import_module(name)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds modules that are to be changed as others do, and has them changed when they were loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _changes:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((each for each in found if each is not None), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_change(module: ModuleType) -> None:
                load(module)
                _changes[name](module)

            spec.loader.exec_module = load_and_change
        return spec
