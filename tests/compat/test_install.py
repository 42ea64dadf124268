# SPDX-License-Identifier: Apache-2.0
"""install() and run_script() as a program sees them: each case in a process of its own, forked after the imports."""

from __future__ import annotations

import multiprocessing
import re
import textwrap
from pathlib import Path

import pytest
import torch

import anynpu

ROOT = Path(__file__).parents[2]
SEED = ROOT.parent / "shared" / "seeds" / "npu_convert_weight_to_int4pack.txt"

PROLOGUE = """
import os, sys, traceback
sys.path[:0] = paths
os.environ.pop("ANYNPU_STRICT", None)
os.environ.update(variables)
try:
    exec(code, {"__name__": "__main__"})
except BaseException:
    with open(report, "w") as file:
        traceback.print_exc(file=file)
"""


@pytest.fixture
def python(tmp_path):
    """Runs code in a process of its own, where anynpu is imported and nothing installed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anynpu"])
    report = tmp_path / "report"

    def run(code, *paths, **variables):
        names = {"code": textwrap.dedent(code), "paths": [*map(str, paths)], "variables": variables}
        process = context.Process(target=exec, args=(PROLOGUE, {**names, "report": str(report)}))
        process.start()
        process.join()
        assert not report.exists(), report.read_text()
        assert process.exitcode == 0

    return run


def test_importing_anynpu_installs_nothing():
    assert callable(anynpu.install)
    assert not hasattr(torch, "npu") and not hasattr(torch.Tensor, "npu")
    assert type(torch.Tensor.to).__name__ == type(torch.Tensor.cpu).__name__ == "method_descriptor"
    assert torch._C._get_privateuse1_backend_name() == "privateuseone"
    for name in ("torch_npu", "torchair"):
        with pytest.raises(ModuleNotFoundError, match=f"No module named '{name}'"):
            __import__(name)


def test_install_again_changes_the_chip_only(python):
    python(
        """
        import anynpu, pytest, torch
        anynpu.install()
        assert (torch.npu.get_device_name(), torch.npu.get_soc_version()) == ("Ascend910_9391", 250)
        anynpu.install(soc="Ascend310P3")
        assert (torch.npu.get_device_name(), torch.npu.get_soc_version()) == ("Ascend310P3", 202)
        with pytest.raises(ValueError, match="device must be 'cpu' or 'cuda', got 'npu'"):
            anynpu.install("npu")
        with pytest.raises(ValueError, match="soc must be a chip name such as Ascend910B .*, got 'H100'"):
            anynpu.install(soc="H100")
        if not torch.cuda.is_available():
            with pytest.raises(RuntimeError, match="device is 'cuda', but torch.cuda.is_available"):
                anynpu.install("cuda")
        """,
        ANYNPU_SOC="Ascend910_9391",
    )


def test_a_variable_that_names_no_chip_is_refused(python):
    python(
        """
        import anynpu, pytest, torch
        with pytest.raises(ValueError, match="ANYNPU_SOC must be a chip name such as Ascend910B .*, got 'H100'"):
            anynpu.install()
        assert not hasattr(torch, "npu")
        anynpu.install(soc="Ascend310P3")
        assert torch.npu.get_device_name() == "Ascend310P3"
        """,
        ANYNPU_SOC="H100",
    )


def test_install_in_threads(python):
    python(
        """
        import threading, anynpu, sys
        from anynpu.compat.finder import Finder
        threads = [threading.Thread(target=anynpu.install) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert sum(isinstance(finder, Finder) for finder in sys.meta_path) == 1
        import torch
        assert torch.zeros(2, device="npu").is_npu
        """
    )


@pytest.mark.parametrize("what", ["distribution", "module"])
def test_refuses_beside_the_real_one(python, tmp_path, what):
    if what == "distribution":
        (tmp_path / "torch_npu-2.6.0.dist-info").mkdir()
        (tmp_path / "torch_npu-2.6.0.dist-info" / "METADATA").write_text("Name: torch-npu\nVersion: 2.6.0\n")
        text = "the real torch-npu 2.6.0 is installed"
    else:
        (tmp_path / "torch_npu.py").write_text("real = True\n")
        text = "the real torch_npu is found at"
    python(
        f"""
        import anynpu, pytest, torch
        with pytest.raises(RuntimeError, match={text!r}):
            anynpu.install()
        assert not hasattr(torch.Tensor, "npu")
        """,
        tmp_path,
    )


SCRIPT = """
import sys, torch_npu, helper
if __name__ == "__main__":
    with open("said", "w") as said:
        said.write(f"{sys.argv[1:]} {helper.VALUE} {torch_npu.npu.get_device_name()} {__file__.endswith('.py')}")
    raise SystemExit(3)
"""


@pytest.mark.parametrize("script, module", [("program.py", False), ("program", True), ("folder", False)])
def test_run_script_is_like_python_script(python, tmp_path, script, module):
    (tmp_path / "folder").mkdir()
    for folder in (tmp_path, tmp_path / "folder"):
        (folder / "helper.py").write_text("VALUE = 7\n")
    (tmp_path / "program.py").write_text(SCRIPT)
    (tmp_path / "folder" / "__main__.py").write_text(SCRIPT)
    python(
        f"""
        import os, pytest
        from anynpu.compat.run import run_script
        os.chdir({str(tmp_path)!r})
        with pytest.raises(SystemExit) as stop:
            run_script({script!r}, ["-m", "x"], soc="Ascend910B2", module={module})
        assert stop.value.code == 3
        """
    )
    assert (tmp_path / "said").read_text() == "['-m', 'x'] 7 Ascend910B2 True"


@pytest.mark.parametrize("imports", ["import torch, torch_npu\n", "import anynpu, torch, torch_npu\n"])
def test_a_script_may_start_processes_of_its_own(python, tmp_path, imports):
    (tmp_path / "program.py").write_text(
        f"{imports}"
        "def work(rank):\n"
        "    assert torch_npu.npu.get_device_name() == 'Ascend310P3'\n"
        "    torch.save(torch.full((2,), float(rank), device='npu'), f'{rank}.pt')\n"
        "if __name__ == '__main__':\n"
        "    torch.multiprocessing.spawn(work, nprocs=1)\n"
    )
    python(
        f"""
        import os
        os.chdir({str(tmp_path)!r})
        from anynpu.compat.run import run_script
        run_script("program.py", soc="Ascend310P3")
        """
    )
    assert torch.load(tmp_path / "0.pt").tolist() == [0, 0]


def test_the_number_of_devices(python):
    python(
        """
        import anynpu, pytest, torch
        anynpu.install()
        torch.npu.set_device(2)
        assert torch.npu.device_count() == 3 and torch.npu.current_device() == 2 and torch.ones(1).npu(1).is_npu
        with torch.npu.device("npu:1"):
            assert torch.npu.current_device() == 1
        assert torch.npu.current_device() == 2
        with pytest.raises(RuntimeError, match="device index must be below the device count, 3, got 3"):
            torch.npu.set_device(3)
        import os
        os.environ["ANYNPU_DEVICE_COUNT"] = "none"
        with pytest.raises(ValueError, match="ANYNPU_DEVICE_COUNT must be a number of devices, at least 1, got 'none'"):
            torch.npu.device_count()
        """,
        ANYNPU_DEVICE_COUNT="3",
    )


TRITON = """
import torch, torch_npu, triton
import triton.language as tl

@triton.jit
def add_one(x, size: tl.constexpr):
    places = tl.arange(0, size)
    tl.store(x + places, tl.load(x + places) + 1)

x = torch.zeros(4, device="npu")
add_one[(1,)](x, 4)
assert x.tolist() == [1, 1, 1, 1]

graph = torch.npu.NPUGraph()
with torch.npu.graph(graph):
    doubled = x * 2
    add_one[(1,)](doubled, 4)
    add_one[(1,)](x, size=4)
assert x.tolist() == [1, 1, 1, 1]
for i in range(1, 3):
    graph.replay()
    assert x.tolist() == 4 * [1 + i]
    assert doubled.tolist() == 4 * [2 * i + 1]
add_one[(1,)](x, 4)
assert x.tolist() == [4, 4, 4, 4]
"""


def test_triton_kernels_run_in_the_interpreter(python, tmp_path):
    pytest.importorskip("triton")
    (tmp_path / "kernels.py").write_text(TRITON)
    (tmp_path / "none.py").write_text("import sys\nsys.modules['triton'] = None\nimport triton\n")
    python(
        f"""
        import os, pytest
        os.environ.pop("TRITON_INTERPRET", None)
        os.chdir({str(tmp_path)!r})
        from anynpu.compat.run import run_script
        run_script("kernels.py")
        with pytest.raises(ModuleNotFoundError, match="run in Triton's interpreter: pip install triton"):
            run_script("none.py")
        """
    )


def test_npu_maps_to_cuda_devices(python):
    python(
        """
        import anynpu, pytest, torch
        anynpu.install()
        from anynpu.compat import device
        device._target, torch.cuda.device_count, torch.cuda.current_device = torch.device("cuda"), lambda: 2, lambda: 1
        for name, index in (("npu", 1), ("npu:0", 0), (torch.device("npu", 1), 1), (0, 0)):
            assert device.real_device(name) == torch.device("cuda", index)
        with pytest.raises(RuntimeError, match="device index must be below the device count, 2, got 2"):
            device.real_device(2)
        """
    )


def test_synchronize_tells_what_a_gpu_found_wrong(python):
    """With a CUDA runtime that only pretends: the note is in the host's memory."""
    python(
        """
        import anynpu, pytest, torch
        waited = []
        torch.cuda.is_available, torch.cuda.init = lambda: True, lambda: None
        torch.cuda.device_count, torch.cuda.current_device = lambda: 2, lambda: 1
        torch.cuda.synchronize = lambda device=None: waited.append(device)
        anynpu.install("cuda")
        from anynpu import _device_errors
        rule = _device_errors.new_rule("some_operator", "x", "must be small")
        for index in (0, 1):
            _device_errors._words[torch.device("cuda", index)] = torch.tensor([rule + 7])
        for arguments in ((), ("npu:0",)):
            with pytest.raises(ValueError, match="some_operator: .* x must be small, .* at flat position 7 on"):
                torch.npu.synchronize(*arguments)
            torch.npu.synchronize(*arguments)
        assert waited[0] is None and torch.device("cuda", 0) in waited
        assert torch.accelerator.current_device_index() == 1 and torch.accelerator.device_count() == 2
        with pytest.raises(ValueError, match="must be small"):
            _device_errors._words[torch.device("cuda", 1)] = torch.tensor([rule + 7])
            torch.accelerator.synchronize()
        x = torch.ones(2, requires_grad=True)
        x.sum().backward()
        assert torch.equal(x.grad, torch.ones(2))
        torch.Tensor.is_cuda = True
        with pytest.raises(NotImplementedError, match="backward: gradients need npu to stand for the CPU"):
            x.sum().backward()
        """
    )


def test_run_script_names_a_missing_script():
    from anynpu.compat.run import run_script

    with pytest.raises(FileNotFoundError, match="run: no such script: nowhere.py"):
        run_script("nowhere.py")


@pytest.mark.parametrize(
    "example", sorted((ROOT / "examples" / "python").glob("torch_npu_*.py")), ids=lambda path: path.stem
)
def test_examples(python, example):
    python(f"from anynpu.compat.run import run_script; run_script({str(example)!r})")


def test_transfer_to_npu(python):
    python(
        """
        import anynpu, torch
        anynpu.install()
        import torch_npu
        from torch_npu.contrib import transfer_to_npu
        layer = torch.nn.Linear(3, 3, device="cuda").cuda()
        x = torch.randn(2, 3, device="cuda:0")
        assert torch.cuda.is_available() and torch.cuda.get_device_name() == "Ascend910B" and x.is_npu
        torch.cuda.synchronize()
        assert torch.cuda.memory.memory_allocated() > 0
        torch.cuda.random.set_rng_state_all(torch.cuda.random.get_rng_state_all())
        assert torch.distributed.is_nccl_available() and not torch.is_autocast_enabled()
        with torch.autocast("cuda"), torch.cuda.stream(torch.cuda.Stream()):
            assert layer(x).dtype == torch.get_autocast_gpu_dtype() == torch.float16
            assert torch.is_autocast_enabled() and torch.is_autocast_enabled("cuda")
        torch.cuda.ExternalStream(1).wait_stream(torch.cuda.default_stream(x.device))
        torch.amp.GradScaler("cuda").scale(layer(x).sum()).backward()
        with torch.device("cuda:0"):
            assert torch.zeros(2).is_npu
        torch.set_default_device("cuda")
        assert torch.empty_like(x, device="cuda").is_npu and torch.nn.Linear(2, 2).weight.is_npu
        torch.set_default_device(None)
        function = lambda x: layer(x.cuda()).to("cuda") + torch.ones(3, device="cuda")
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), function(x), rtol=0, atol=0)
        """
    )


def test_a_torch_without_python_device_guards(python):
    python(
        """
        import torch
        if hasattr(torch._C, "_acc"):
            del torch._C._acc
        import anynpu
        anynpu.install()
        for made in (torch.tensor([1], device="npu"), torch.as_tensor([1], device="npu"), torch.ones(1).to("npu"),
                     torch.zeros(1, device="npu"), torch.ones(1).npu(), torch.ones(1).new_tensor([1], device="npu")):
            assert made.is_npu and made.npu() is made
        """
    )


def code_blocks():
    """The samples of the seed: four spaces before each line of code, after a column of line numbers."""
    blocks, lines = [], []
    for line in [*SEED.read_text().splitlines(), "end"]:
        if line.startswith("    ") and not re.fullmatch(r" +\d+", line):
            lines.append(line[4:])
        elif line.strip() and lines:
            blocks.append("\n".join(lines))
            lines = []
        elif lines:
            lines.append("")
    return [block for block in blocks if "import torch_npu" in block]


@pytest.mark.skipif(not SEED.exists(), reason=f"the document {SEED.name} is not there")
@pytest.mark.parametrize("index", [0, 1], ids=["single operator", "graph mode"])
def test_samples_of_the_document_run_unmodified(python, tmp_path, index):
    blocks = code_blocks()
    assert len(blocks) == 2
    (tmp_path / "sample.py").write_text(blocks[index])
    python(
        f"""
        import runpy, torch, anynpu
        from anynpu.compat.run import run_script
        from anynpu.ops.weight_quant_matmul.reference import error_bound
        kept = {{}}
        run_path = runpy.run_path
        runpy.run_path = lambda *args, **options: kept.update(run_path(*args, **options))
        run_script({str(tmp_path / "sample.py")!r})
        weight = anynpu.int4_pack(kept["cpu_weight"])
        arguments = (kept["cpu_x"], weight, kept["cpu_antiquantscale"], kept["cpu_antiquantoffset"])
        reference = anynpu.reference.weight_quant_matmul(*arguments)
        assert kept["npu_out"].shape == reference.shape and kept["npu_out"].dtype == torch.float16
        difference = (kept["npu_out"].double() - reference.double()).abs()
        assert (difference <= error_bound(*arguments)).all()
        """
    )
