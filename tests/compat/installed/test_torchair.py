# SPDX-License-Identifier: Apache-2.0
"""torchair: the backend for torch.compile and its options."""

from __future__ import annotations

import importlib.metadata
import logging

import pytest
import torch
import torch_npu
import torch_npu.dynamo.torchair
import torchair
from torchair.configs.compiler_config import CompilerConfig


class Model(torch.nn.Module):
    def forward(self, x, weight, scale):
        return torch_npu.npu_weight_quant_batchmatmul(x, weight, scale) * 2


def arguments(m):
    generator = torch.Generator().manual_seed(m)
    values = torch.randint(-8, 8, (17, 72), dtype=torch.int32, generator=generator)
    x = torch.randn(m, 17, generator=generator).half()
    return x.npu(), torch_npu.npu_convert_weight_to_int4pack(values.npu()), torch.ones(1, 72, dtype=torch.float16).npu()


def test_compiles_with_inductor_when_a_compiler_is_there(caplog):
    backend = torchair.get_npu_backend(compiler_config=CompilerConfig())
    if backend.description != "compiles with Inductor":
        pytest.skip(backend.description)
    torch.compiler.reset()
    model = torch.compile(Model().npu(), backend=backend, dynamic=True, fullgraph=True)
    with caplog.at_level(logging.INFO, "torchair"):
        for m in (16, 5):
            torch.testing.assert_close(model(*arguments(m)), Model()(*arguments(m)), rtol=0, atol=0)
    assert "get_npu_backend: compiles with Inductor" in caplog.text


@pytest.mark.parametrize("reason", ["no C++ compiler was found", "config.debug.run_eagerly is set"])
def test_runs_the_captured_graph_otherwise(monkeypatch, caplog, reason):
    config = CompilerConfig()
    if reason.startswith("config"):
        config.debug.run_eagerly = True
    else:
        monkeypatch.setattr("torchair._backend._why_not_inductor", lambda: reason)
    backend = torchair.get_npu_backend(compiler_config=config)
    assert backend.description == f"runs the captured graph, because {reason}"
    torch.compiler.reset()
    model = torch.compile(Model(), backend=backend, dynamic=True, fullgraph=True)
    with caplog.at_level(logging.INFO, "torchair"):
        for m in (16, 5):
            torch.testing.assert_close(model(*arguments(m)), Model()(*arguments(m)), rtol=0, atol=0)
    assert reason in caplog.text


def test_says_that_headers_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert torchair.get_npu_backend().description == (
        "runs the captured graph, because Python's headers are missing (Python.h)"
    )


def test_custom_decompositions_reach_inductor():
    backend = torchair.get_npu_backend(
        custom_decompositions={torch.ops.aten.cosh.default: lambda x: torch.full_like(x, 7.0)}
    )
    if backend.description != "compiles with Inductor":
        pytest.skip(backend.description)
    torch.compiler.reset()
    assert torch.compile(torch.cosh, backend=backend)(torch.ones(2)).tolist() == [7, 7]


def test_options():
    config = CompilerConfig()
    assert config.mode.value == "max-autotune" == config.mode
    config.mode = "reduce-overhead"
    config.debug.graph_dump.type = "pbtxt"
    config.experimental_config.frozen_parameter = True
    config.experimental_config.static_model_ops_lower_limit = 3
    config.experimental_config.aclgraph._aclnn_static_shape_kernel = True
    config.experimental_config.aclgraph._aclnn_static_shape_kernel_sym_value_range = [1, 8]
    config.ge_config.oo_level = "O1"
    config.aoe_config.aoe_mode = "2"
    config.inference_config.dynamic_gears_merge_policy = "product"
    assert (config.mode.value, config.debug.graph_dump.type.value) == ("reduce-overhead", "pbtxt")
    assert config.experimental_config.frozen_parameter
    assert CompilerConfig().mode == "max-autotune"


@pytest.mark.parametrize(
    "assign, text",
    [
        (lambda c: setattr(c, "modes", "x"), "CompilerConfig has no option 'modes', it has mode, debug, "),
        (lambda c: c.speed, "CompilerConfig has no option 'speed'"),
        (lambda c: setattr(c, "mode", "fast"), r"CompilerConfig.mode must be one of \['max-autotune', .*got 'fast'"),
        (lambda c: setattr(c.debug.graph_dump, "type", "png"), "CompilerConfig.debug.graph_dump.type must be one of"),
        (lambda c: setattr(c.ge_config, "level", 1), "CompilerConfig.ge_config has no option 'level'"),
        (lambda c: setattr(c, "debug", True), "CompilerConfig.debug is a group of options"),
    ],
)
def test_wrong_options_are_refused(assign, text):
    with pytest.raises(ValueError, match=text):
        assign(CompilerConfig())


def test_what_is_not_implemented_says_so():
    config = CompilerConfig()
    config.export.export_mode = True
    with pytest.raises(NotImplementedError, match="export_mode is not implemented by anynpu"):
        torchair.get_npu_backend(compiler_config=config)
    with pytest.raises(TypeError, match="compiler_config must be a CompilerConfig, got dict"):
        torchair.get_npu_backend(compiler_config={})
    for function in (torchair.inference.readable_cache, torchair.dynamo_export):
        with pytest.raises(NotImplementedError, match=rf"torchair.*{function.__name__} is not implemented by anynpu"):
            function("x")
    with pytest.raises(ImportError, match="torchair.fx_dumper is not implemented by anynpu.*CompilerConfig"):
        exec("import torchair.fx_dumper", {})


def test_what_samples_import_and_do_not_use():
    from torchair.ge_concrete_graph import ge_apis

    with pytest.raises(
        NotImplementedError, match="ge_apis.Cast is not implemented by anynpu. Implemented in .*: nothing"
    ):
        ge_apis.Cast  # noqa: B018
    with pytest.raises(ImportError, match="torchair.ge_concrete_graph.fx2ge_converter is not implemented by anynpu"):
        exec("from torchair.ge_concrete_graph import fx2ge_converter", {})


@pytest.mark.parametrize(
    "backend, options",
    [("npu", None), ("npugraph_ex", None), ("npugraph_ex", {"force_eager": True, "clone_input": False})],
)
def test_backends_of_torch_by_name(backend, options):
    torch.compiler.reset()
    assert backend in torch._dynamo.list_backends()
    compiled = torch.compile(Model(), backend=backend, options=options, fullgraph=True)
    torch.testing.assert_close(compiled(*arguments(4)), Model()(*arguments(4)), rtol=0, atol=0)


def test_the_distribution_is_found():
    assert importlib.metadata.version("torch_npu") == importlib.metadata.version("torch-npu") == torch_npu.__version__
    assert torch_npu.version.__version__ == torch_npu.__version__
    assert "torch_npu" in {found.metadata["Name"] for found in importlib.metadata.distributions()}
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("torch_npu_tools")


class Cached(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.decode = torchair.inference.cache_compile(self._decode, config=CompilerConfig(), cache_dir="nowhere")

    def _decode(self, x):
        with torchair.scope.npu_stream_switch("1", 3), torchair.scope.limit_core_num(4, 8):
            y = self.linear(x)
        with torchair.scope.super_kernel("layer", "options"), torchair.scope.op_never_timeout(True):
            return torchair.scope.npu_wait_tensor(y, x) + 1


def test_cached_compilation_and_scopes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.compiler.reset()
    model = Cached().npu()
    torchair.patch_for_hcom()
    torchair.register_replacement(search_fn=torch.add, replace_fn=torch.sub, example_inputs=[torch.ones(1)])
    with pytest.raises(TypeError, match="register_replacement: replace_fn must be callable, got str"):
        torchair.register_replacement(torch.add, "sub", [])
    torchair.use_internal_format_weight(model)
    assert torch_npu.get_npu_format(model.linear.weight) == torch_npu.Format.FRACTAL_NZ
    for rows in (2, 3):
        x = torch.randn(rows, 4, device="npu")
        torchair.inference.set_dim_gears(x, {0: [2, 3]})
        with torch.inference_mode():
            torch.testing.assert_close(model.decode(x), model.linear(x) + 1)
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_of_inference():
    with pytest.raises(ValueError, match="func must be a function or a method of a module, got Linear"):
        torchair.inference.cache_compile(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="dim_gears must name axes of t, which has 2, got 2"):
        torchair.inference.set_dim_gears(torch.ones(2, 2), {2: [1]})
    with pytest.raises(TypeError, match=r"the gears of axis 1 must be a list of ints, got \[2.5\]"):
        torchair.inference.set_dim_gears(torch.ones(2, 2), {1: [2.5]})
    with pytest.raises(TypeError, match="t must be a tensor and dim_gears a dict, got Tensor and list"):
        torchair.inference.set_dim_gears(torch.ones(2), [2])


def test_the_logger_of_the_samples():
    from torchair.core.utils import logger

    assert logger is torchair.logger


def test_the_second_name_is_the_same_module():
    import torch_npu.dynamo.torchair.configs.compiler_config as second

    assert torch_npu.dynamo.torchair is torchair
    assert second.CompilerConfig is CompilerConfig
    assert torchair.__spec__.name == "torchair"
