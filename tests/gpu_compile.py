# SPDX-License-Identifier: Apache-2.0
"""Compiles the kernels that a call would launch for a GPU that is not there: Triton brings NVIDIA's assembler."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import mangle_type

from anynpu import _device_errors
from anynpu._triton import with_fewer_stages

_REGISTERS = 1 << 16  # of a processor
_SHARED_BY_SYSTEM = 1 << 10  # bytes of a program's shared memory
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Gpu:
    """The GPUs to compile for, and how much shared memory a block can have there."""

    target: GPUTarget
    shared_bytes: int


HOPPER = Gpu(GPUTarget("cuda", 90, 32), 227 << 10)
# The instructions of sm_80, and the shared memory of sm_86, sm_89 and sm_120: the least of all that have bfloat16.
LEAST = Gpu(GPUTarget("cuda", 80, 32), 99 << 10)


@dataclass(frozen=True)
class Compiled:
    """One kernel as machine code."""

    name: str
    programs: int
    ptx: str
    cubin: bytes
    shared_bytes: int
    registers: int
    stack_bytes: int  # what does not fit into registers

    def at_once(self, gpu: Gpu) -> int:
        """How many programs a processor of ``gpu`` has room for."""
        threads = int(re.search(r"\.reqntid (\d+)", self.ptx)[1])
        of_a_thread = -(-self.registers // 8) * 8
        return min(_REGISTERS // (of_a_thread * threads), gpu.shared_bytes // (self.shared_bytes + _SHARED_BY_SYSTEM))

    def instructions(self) -> tuple[list[str], list[str]]:
        """All, and those of the longest loop."""
        lines = _tool("nvdisasm", "-c", self.cubin).splitlines()
        begins = {line[:-1]: place for place, line in enumerate(lines) if re.fullmatch(r"\.L_x_\d+:", line)}
        jumps = ((place, re.search(r"BRA `\((\.L_x_\d+)\)", line)) for place, line in enumerate(lines))
        loops = (lines[begins[jump[1]] : place + 1] for place, jump in jumps if jump and begins[jump[1]] < place - 1)
        return tuple(
            [line for line in part if re.match(r"\s*/\*[0-9a-f]{4,}\*/", line)]
            for part in (lines, max(loops, key=len, default=[]))
        )


def compiled_by(monkeypatch, call: Callable[[], object], gpu: Gpu = HOPPER) -> list[Compiled]:
    """Runs ``call``, on meta tensors, with every launch replaced by compilation for ``gpu``."""
    found = []

    def launch(kernel, programs, *args, **meta):
        def compiled(**options):
            return _compile(kernel, programs, args, options, gpu)

        if programs:  # Hopper has the shared memory for all stages that kernels ask for
            found.append(compiled(**meta) if gpu is HOPPER else with_fewer_stages(compiled, meta, kernel, gpu))

    replace_launches(monkeypatch, launch, gpu)
    call()
    return found


def replace_launches(monkeypatch, launch: Callable[..., None], gpu: Gpu) -> None:
    """Lets kernels that are launched for ``gpu``, on meta tensors, go to ``launch``."""
    for name, replaced in {"launch": launch, "capability": lambda device: gpu.target.arch // 10}.items():
        for module_name, module in list(sys.modules.items()):
            if module_name.startswith("anynpu.") and hasattr(module, name):
                monkeypatch.setattr(module, name, replaced)
    monkeypatch.setattr(_device_errors, "_words", {})  # no other test shall ask a meta tensor for errors


def _compile(kernel: triton.JITFunction, programs: int, args: tuple, meta: dict, gpu: Gpu) -> Compiled:
    values = dict(zip(kernel.arg_names, args, strict=False)) | meta
    own = set(kernel.arg_names) - {"num_stages"}  # which is an option too where a kernel takes it
    options = {key: value for key, value in meta.items() if key not in own} | {"enable_fp_fusion": True}
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or _is_one(parameter, value):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            signature[parameter.name] = mangle_type(value)
            if isinstance(value, torch.Tensor) or _is_multiple_of_16(parameter, value):
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = (GluonASTSource if kernel.is_gluon() else ASTSource)(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=gpu.target, options=options)
    if binary.metadata.shared > gpu.shared_bytes:
        raise OutOfResources(binary.metadata.shared, gpu.shared_bytes, "shared memory")
    ptx, cubin = binary.asm["ptx"], binary.asm["cubin"]
    return Compiled(kernel.__name__, programs, ptx, cubin, binary.metadata.shared, *_resources(cubin))


def _is_one(parameter: triton.runtime.jit.KernelParam, value: object) -> bool:
    """Whether Triton makes a constant of an argument when it launches."""
    return not parameter.do_not_specialize and isinstance(value, int) and value == 1


def _is_multiple_of_16(parameter: triton.runtime.jit.KernelParam, value: object) -> bool:
    """Whether Triton uses that an argument is one."""
    return not parameter.do_not_specialize and isinstance(value, int) and value % 16 == 0


def _tool(name: str, option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([_TOOLS / name, option, file.name], check=True, capture_output=True, text=True).stdout


def _resources(cubin: bytes) -> tuple[int, int]:
    report = _tool("cuobjdump", "-res-usage", cubin)
    return int(re.search(r"REG:(\d+)", report)[1]), int(re.search(r"STACK:(\d+)", report)[1])
