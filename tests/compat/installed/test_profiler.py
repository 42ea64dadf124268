# SPDX-License-Identifier: Apache-2.0
"""torch_npu.profiler."""

from __future__ import annotations

import json

import pytest
import torch
import torch_npu
from torch_npu.profiler import dynamic_profile


def _recorded(folder):
    (trace,) = folder.glob("*_ascend_pt/ASCEND_PROFILER_OUTPUT/trace_view.json")
    return [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]


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
    torch_npu.profiler.analyse(str(tmp_path))
    assert _recorded(tmp_path).count("anynpu::weight_quant_matmul") == 2


def test_without_a_schedule(tmp_path):
    with torch_npu.profiler.profile() as profiler:
        torch.ones(2, device="npu").add(1)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    assert "aten::add" in (tmp_path / "trace.json").read_text()
    assert "aten::add" in {event.key for event in profiler.key_averages()}
    part = torch_npu.profiler._KinetoProfile(activities=[torch_npu.profiler.ProfilerActivity.CPU])
    part.start()
    part.enable_profiler_in_child_thread(record_shapes=True)
    torch.ones(2, device="npu").exp()
    part.disable_profiler_in_child_thread()
    part.stop()
    part.export_chrome_trace(str(tmp_path / "part.json"))
    assert "aten::exp" in (tmp_path / "part.json").read_text()


def test_the_profiler_of_autograd(capfd):
    with torch.autograd.profiler.profile(use_device="npu") as profiler:
        torch.ones(2, device="npu").add(1)
    assert "aten::add" in {event.key for event in profiler.key_averages()}
    assert "Exception" not in capfd.readouterr().err


def test_stacks_with_their_time(tmp_path):
    profiler = torch_npu.profiler.profile(with_stack=True, use_cuda=False)
    profiler.start()
    for _ in range(20):
        torch.ones(256, 256, device="npu").exp()
    profiler.stop()
    for metric in ("self_cpu_time_total", "self_npu_time_total"):
        profiler.export_stacks(str(tmp_path / metric), metric)
        assert "test_stacks_with_their_time" in (tmp_path / metric).read_text()


def test_options_are_the_published_ones():
    from torch_npu.profiler.profiler import analyse, supported_activities

    assert torch_npu.profiler.ExportType.Db in torch_npu.profiler.supported_export_type()
    assert torch_npu.profiler.ProfilerLevel.Level2 == "Level2" in torch_npu.profiler.supported_profiler_level()
    assert torch_npu.profiler.AiCMetrics.Memory in torch_npu.profiler.supported_ai_core_metrics()
    assert supported_activities() == set(torch_npu.profiler.ProfilerActivity)
    config = torch_npu.profiler._ExperimentalConfig(host_sys=[torch_npu.profiler.HostSystem.CPU], mstx=True)
    assert config.host_sys == ["cpu"]
    with pytest.raises(TypeError, match="aic_metric"):
        torch_npu.profiler._ExperimentalConfig(aic_metric="Memory")
    with pytest.raises(RuntimeError, match="analyse: profiler_path must be a folder, got nowhere"):
        analyse("nowhere")
    first = [torch_npu.profiler.schedule(2, 1, 1, 1, 1, skip_first_wait)(1).name for skip_first_wait in (0, 1)]
    assert first == ["NONE", "WARMUP"]


def test_a_file_asks_for_profiles_of_a_running_program(tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_profile, "_watch", dynamic_profile._Watch())
    dynamic_profile.init(str(tmp_path / "asked"))
    file = tmp_path / "asked" / "profiler_config.json"
    config = json.loads(file.read_text())

    def run(folder, steps, **asked):
        file.write_text(json.dumps(config | {"prof_dir": str(tmp_path / folder)} | asked))
        for _ in range(steps):
            torch.ones(2, device="npu").exp()
            dynamic_profile.step()

    run("at_once", 6, start_step=-1, active=2, warmup=1, metadata={"run": 7})
    assert _recorded(tmp_path / "at_once").count("aten::exp") == 2
    run("at_a_step", 6, start_step=9)
    assert _recorded(tmp_path / "at_a_step").count("aten::exp") == 1
    with pytest.warns(UserWarning, match="start_step of .* must be -1 or a step to come, got 9 at step 13"):
        run("too_late", 3, start_step=9)
    run("of_another_rank", 3, start_step=-1, is_rank=True, rank_list=[1])
    dynamic_profile.set_state({"cur_step": 100})
    run("resumed", 4, start_step=102)
    run("while_written", 0)
    dynamic_profile.start()
    run("while_written", 3, start_step=1000)
    folders = {each.name for each in tmp_path.iterdir()}
    assert folders == {"asked", "at_a_step", "at_once", "resumed", "while_written"}


def test_names_that_are_missing_say_so():
    with pytest.raises(NotImplementedError, match="torch_npu.profiler._NonIntrusiveProfile is not implemented"):
        _ = torch_npu.profiler._NonIntrusiveProfile
