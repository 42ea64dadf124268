# SPDX-License-Identifier: Apache-2.0
"""The backend that ``torch.compile`` gets from ``get_npu_backend``."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from anynpu.compat.device import target
from torchair.configs.compiler_config import CompilerConfig
from torchair.core.utils import logger


def _why_not_inductor() -> str | None:
    """Why Inductor cannot compile for the device that npu stands for; None when it can."""
    if target().type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton is not installed"
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "no C++ compiler was found"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():  # Debian has it in a package of its own
        return "Python's headers are missing (Python.h)"
    return None


class NpuBackend:
    """A backend for ``torch.compile``; ``description`` says what it does with a graph, and why."""

    def __init__(self, config: CompilerConfig, custom_decompositions: dict[Any, Callable[..., Any]]) -> None:
        self.config = config
        self._decompositions = custom_decompositions
        reason = "config.debug.run_eagerly is set" if config.debug.run_eagerly else _why_not_inductor()
        self._inductor = reason is None
        self.description = "compiles with Inductor" if reason is None else f"runs the captured graph, because {reason}"

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        logger.info("get_npu_backend: %s", self.description)
        if not self._inductor:
            return graph.forward
        from torch._inductor.compile_fx import compile_fx
        from torch._inductor.decomposition import select_decomp_table

        return compile_fx(graph, example_inputs, decompositions={**select_decomp_table(), **self._decompositions})


def get_npu_backend(
    *, compiler_config: CompilerConfig | None = None, custom_decompositions: dict[Any, Callable[..., Any]] | None = None
) -> NpuBackend:
    """The backend for ``torch.compile(model, backend=...)``.

    Graphs are compiled with Inductor where it has a C++ compiler and Python's headers (or Triton, when npu stands for
    CUDA), else run as captured; ``description`` of the result and the logger ``torchair`` say which.

    Args:
        compiler_config: see ``CompilerConfig``.
        custom_decompositions: operator to function, used before Inductor's own; no effect on graphs run as captured.

    Raises:
        TypeError: ``compiler_config`` is something else.
        NotImplementedError: ``export`` is asked for.
    """
    config = CompilerConfig() if compiler_config is None else compiler_config
    if not isinstance(config, CompilerConfig):
        raise TypeError(f"get_npu_backend: compiler_config must be a CompilerConfig, got {type(config).__name__}")
    if config.export.export_mode:
        raise NotImplementedError("get_npu_backend: export.export_mode is not implemented by anynpu")
    return NpuBackend(config, custom_decompositions or {})


def npu(graph: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """The backend of ``torch.compile(model, backend="npu")``: that of ``get_npu_backend()``."""
    return get_npu_backend()(graph, example_inputs)


def npugraph_ex(
    graph: torch.fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """The backend of ``torch.compile(model, backend="npugraph_ex", options={...})``.

    ``force_eager`` runs the captured graph, as ``debug.run_eagerly`` does; the other options do not change results.
    """
    config = CompilerConfig()
    config.debug.run_eagerly = (options or {}).get("force_eager", False)
    return get_npu_backend(compiler_config=config)(graph, example_inputs)
