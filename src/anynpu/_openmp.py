# SPDX-License-Identifier: Apache-2.0
"""The OpenMP runtimes of this process, of which the native library must use torch's."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import torch  # noqa: F401 - loads its runtime

_RUNTIME = re.compile(r"/lib(?:gomp|iomp5|omp)\b[^/]*\.so[^/]*$")
_OWN_NAME = re.compile(r"/torch(?:/lib|\.libs)/libgomp-\w+\.so[^/]*$")
_COMMON_NAME = re.compile(r"/libgomp\.so[^/]*$")


def loaded() -> list[str]:
    """The files of the OpenMP libraries that this process has mapped."""
    try:
        return named_in(Path("/proc/self/maps").read_text())
    except OSError:
        return []


def named_in(maps: str) -> list[str]:
    """The OpenMP libraries named in the text of ``/proc/<pid>/maps``, each once."""
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if len(line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if _RUNTIME.search(path))


def used(runtimes: list[str]) -> list[str]:
    """``runtimes`` without the libgomp.so.1 that the native library pulls in and ``share`` keeps idle."""
    if any(map(_OWN_NAME.search, runtimes)):
        return [path for path in runtimes if not _COMMON_NAME.search(path)]
    return runtimes


def share() -> None:
    """Makes the native library, loaded after this, call the OpenMP runtime that torch calls.

    By its name, libgomp.so.1, it would find another one where torch's wheel (for aarch64) bundles its copy under a name
    of its own. Symbols of global libraries are found first.
    """
    for path in filter(_OWN_NAME.search, loaded()):
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
