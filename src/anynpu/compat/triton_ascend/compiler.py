# SPDX-License-Identifier: Apache-2.0
"""The compiler of Triton's backend ``npu``, which compiles nothing."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from triton.backends.compiler import BaseBackend


class InterpretedBackend(BaseBackend):
    """Stands where Triton wants a compiler."""

    @staticmethod
    def supports_target(target: Any) -> bool:
        """Whether ``target`` is that of the driver here."""
        return target.backend == "npu"

    def hash(self) -> str:
        """A constant: there is no compiler whose version could matter."""
        return "interpreted"

    def parse_options(self, options: dict[str, Any]) -> Any:
        """Raises NotImplementedError."""
        raise NotImplementedError("kernels for npu run in Triton's interpreter: define them with TRITON_INTERPRET=1")

    def add_stages(self, stages: dict[str, Any], options: Any, language: Any = None) -> None:
        """Adds none."""

    def load_dialects(self, context: Any) -> None:
        """Loads none."""

    def get_module_map(self) -> dict[str, ModuleType]:
        """None."""
        return {}
