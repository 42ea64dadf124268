# SPDX-License-Identifier: Apache-2.0
"""torch_npu.profiler."""

from __future__ import annotations

import json

import pytest
import torch
import torch_npu


def test_a_profiled_loop_leaves_a_trace_with_the_operators(tmp_path):
    weight = torch_npu.npu_convert_weight_to_int4pack(torch.ones(64, 8, dtype=torch.int32).npu())
    x, scale = torch.ones(2, 64).half().npu(), torch.ones(8).half().npu()
    config = torch_npu.profiler._ExperimentalConfig(
        profiler_level=torch_npu.profiler.ProfilerLevel.Level1,
        aic_metrics=torch_npu.profiler.AiCMetrics.PipeUtilization,
        export_type=torch_npu.profiler.ExportType.Text,
    )
    with torch_npu.profiler.profile(
        activities=[torch_npu.profiler.ProfilerActivity.CPU, torch_npu.profiler.ProfilerActivity.NPU],
        schedule=torch_npu.profiler.schedule(wait=1, warmup=1, active=2, repeat=1),
        on_trace_ready=torch_npu.profiler.tensorboard_trace_handler(str(tmp_path)),
        record_shapes=True,
        experimental_config=config,
    ) as profiler:
        for _ in range(4):
            torch_npu.npu_weight_quant_batchmatmul(x, weight, scale)
            profiler.step()
    (trace,) = tmp_path.glob("*.pt.trace.json")
    names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
    assert names.count("anynpu::weight_quant_matmul") == 2


def test_without_a_schedule(tmp_path):
    with torch_npu.profiler.profile() as profiler:
        torch.ones(2, device="npu").add(1)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    assert "aten::add" in (tmp_path / "trace.json").read_text()
    assert "aten::add" in {event.key for event in profiler.key_averages()}


def test_the_profiler_of_autograd(capfd):
    with torch.autograd.profiler.profile(use_device="npu") as profiler:
        torch.ones(2, device="npu").add(1)
    assert "aten::add" in {event.key for event in profiler.key_averages()}
    assert "Exception" not in capfd.readouterr().err


def test_names_that_are_missing_say_so():
    with pytest.raises(NotImplementedError, match="torch_npu.profiler.analyse is not implemented by anynpu"):
        _ = torch_npu.profiler.analyse
