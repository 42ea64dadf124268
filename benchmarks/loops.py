# SPDX-License-Identifier: Apache-2.0
"""Estimates the inner loops of the kernels of a tier without a CPU that has it.

A kernel unit is compiled as the build does it, the loops that contain no other loop are cut from GCC's assembly, and
llvm-mca says how many cycles one pass takes when all data is in the nearest cache.

    python benchmarks/loops.py csrc/gemm/kernel_avx512vnni.cc --function 'tile_digits<3, 2, true>'
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PASSES = 200
LONGEST = 300  # instructions; longer bodies are loops of rare cases that GCC has merged


def assembly(unit: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        configure = ["cmake", "-S", ROOT, "-B", folder, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
        subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
        commands = json.loads((Path(folder) / "compile_commands.json").read_text())
        [command] = [each["command"] for each in commands if each["file"].endswith(unit)]
        flags = shlex.split(command)[:-4]  # without -o, the object, -c and the unit
        command = [*flags, "-S", "-o", "-", ROOT / unit]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout


def functions(text: str) -> dict[str, list[str]]:
    found, lines = {}, []
    for line in text.splitlines():
        if re.match(r"_Z.*:$", line):
            lines = found[line[:-1]] = []
        lines.append(line)
    names = subprocess.run(["c++filt"], input="\n".join(found), check=True, capture_output=True, text=True).stdout
    return dict(zip(names.replace("anynpu::(anonymous namespace)::", "").splitlines(), found.values(), strict=True))


def inner_loops(lines: list[str]) -> list[list[str]]:
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.match(r"\.L\d+:$", line)}
    jumps = [
        (labels.get(match[1], i), i) for i, line in enumerate(lines) if (match := re.match(r"\tj\w+\s+(\S+)", line))
    ]
    loops = [(begin, end) for begin, end in jumps if begin < end]
    inner = [(b, e) for b, e in loops if not any((b, e) != (x, y) and b <= x and y <= e for x, y in loops)]
    return [[line for line in lines[b : e + 1] if re.match(r"\t\w", line)] for b, e in inner]


def cycles(loop: list[str], cpu: str) -> float:
    code = "\n".join(re.sub(r"^\t(j\w+)\s.*", r"\t\1 outside", line) for line in loop)
    command = ["llvm-mca-19", f"-mcpu={cpu}", f"-iterations={PASSES}", "-all-views=false", "-summary-view"]
    done = subprocess.run(command, input=code, check=True, capture_output=True, text=True)
    return int(re.search(r"Total Cycles:\s+(\d+)", done.stdout)[1]) / PASSES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unit", help="a kernel unit, relative to the repository")
    parser.add_argument("--function", default="", help="a part of the names of the functions to print")
    parser.add_argument("--cpu", default="icelake-server,znver4", help="models of llvm-mca, separated by commas")
    arguments = parser.parse_args()
    cpus = arguments.cpu.split(",")
    print(*cpus, "instructions", "products", "stack", sep="\t")
    for name, lines in functions(assembly(arguments.unit)).items():
        for loop in inner_loops(lines) if arguments.function in name else ():
            products = sum(bool(re.match(r"\t(vpdp|vdp|vfn?m|vpmadd)", line)) for line in loop)
            stack = sum(bool(re.search(r"\(%r[sb]p", line)) for line in loop)
            calls = any(line.startswith("\tcall") for line in loop)
            if calls or len(loop) > LONGEST or not any("%zmm" in line for line in loop):
                continue
            print(*(f"{cycles(loop, cpu):.1f}" for cpu in cpus), len(loop), products, stack, name[:100], sep="\t")


if __name__ == "__main__":
    main()
