# SPDX-License-Identifier: Apache-2.0
"""The commands for C and C++ programs: ``anynpu toolkit``, ``anynpu cc`` and ``anynpu check``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from anynpu import _native

LIBRARIES = ("opapi", "nnopbase", "ascendcl")


def compile_command(arguments: list[str]) -> list[str]:
    """The compiler call that builds an aclnn program: C++ unless every source file is C."""
    folder = _native.toolkit_path()
    is_c = any(name.endswith(".c") for name in arguments) and not any(
        name.endswith((".cc", ".cpp", ".cxx", ".C")) for name in arguments
    )
    compiler = os.environ.get("CC", "cc") if is_c else os.environ.get("CXX", "c++")
    libraries = folder / "lib64"
    return [
        *compiler.split(),
        f"-I{folder / 'include'}",
        f"-I{folder / 'include' / 'aclnn'}",
        *arguments,
        f"-L{libraries}",
        f"-Wl,-rpath,{libraries}",
        *(f"-l{name}" for name in LIBRARIES),
    ]


def toolkit() -> None:
    """Print the folder of headers and libraries.

    It is what ASCEND_CUSTOM_PATH, ASCEND_HOME_PATH or ASCEND_TOOLKIT_HOME should hold.
    """
    typer.echo(_native.toolkit_path())


def cc(arguments: Annotated[list[str], typer.Argument(help="What to hand to the compiler.")]) -> None:
    """Compile and link an acl program in C or C++.

    $CXX or $CC is called with the paths and libraries of the toolkit: anynpu cc prog.cpp -o prog -O2
    """
    raise typer.Exit(subprocess.call(compile_command(arguments)))


def check(
    command: Annotated[list[str], typer.Argument(help="The program and its arguments.")],
    json_report: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Run an acl program and report its mistakes.

    Leaks, wrong addresses, missing synchronisation and more.
    The exit status is the program's own, or 86 when it ended well but something was found.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        environment = {**os.environ, "ANYNPU_CHECK": "1", "ANYNPU_CHECK_REPORT": str(path)}
        status = subprocess.call(command, env=environment)
        if not path.exists():
            typer.echo(f"anynpu check: {command[0]} wrote no report; does it use the toolkit's libraries?", err=True)
            raise typer.Exit(status or 1)
        report = json.loads(path.read_text())
    name_places(report)
    typer.echo(json.dumps(report, indent=1) if json_report else report_text(report), err=not json_report)
    raise typer.Exit(status)


def name_places(report: dict) -> None:
    """Adds "place" (function and file:line) to every frame, as far as debug information and addr2line tell it."""
    frames: dict[str, list[dict]] = {}
    for finding in report["findings"]:
        for frame in (*finding["at"], *finding["created"], *finding["destroyed"]):
            frames.setdefault(frame["module"], []).append(frame)
    for module, group in frames.items():
        for frame, place in zip(group, _places(module, [frame["offset"] for frame in group]), strict=True):
            frame["place"] = place or frame["symbol"]


def _places(module: str, offsets: list[int]) -> list[str]:
    tool = shutil.which("addr2line")
    if tool is None or not Path(module).exists():
        return [""] * len(offsets)
    result = subprocess.run(
        [tool, "-Cfe", module, *map(hex, offsets)], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    if len(result) != 2 * len(offsets):
        return [""] * len(offsets)
    return [_place(*pair) for pair in zip(result[::2], result[1::2], strict=True)]


def _place(function: str, line: str) -> str:
    """ "name<arguments> file:line" of what addr2line says, without return type and parameters."""
    function = _short_name(function.replace("(anonymous namespace)::", ""))
    line = line.split(" (discriminator")[0]
    path, _, number = line.rpartition(":")
    if path and not path.startswith("??"):
        line = f"{os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path}:{number}"
    return " ".join(part for part in (function, line) if not part.startswith("??"))


def _short_name(function: str) -> str:
    if inner := re.match(r"(.*)::\{lambda\([^{}]*\)#\d+\}::operator\(\)", function):
        return f"a lambda in {_short_name(inner[1])}"
    function = re.split(r"(?<!operator)\(", function)[0]
    return re.sub(r"^(?:[\w:]+[ *&]+)+(?=[\w:~]+)", "", function)


def report_text(report: dict) -> str:
    """The findings for people, places in the program first."""
    count = report["count"]
    lines = [f"anynpu check: {count} finding{'' if count == 1 else 's'}"]
    for finding in report["findings"]:
        call = f"{finding['call']}: " if finding["call"] else ""
        times = f" ({finding['count']} times)" if finding["count"] > 1 else ""
        lines.append(f"  {finding['kind']}: {call}{finding['message']}{times}")
        for title, key in (("found at", "at"), ("created at", "created"), ("destroyed at", "destroyed")):
            if places := [place for place in map(_frame_text, finding[key]) if not place.startswith("std::")]:
                lines.append(f"      {title} " + ", called from ".join(places))
    return "\n".join(lines)


def _frame_text(frame: dict) -> str:
    return frame.get("place") or f"{Path(frame['module']).name}+{frame['offset']:#x}"
