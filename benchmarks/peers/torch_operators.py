# SPDX-License-Identifier: Apache-2.0
"""Packages whose kernels are operators of torch: their library is loaded, and nothing of their Python is imported."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import torch


@cache
def why_not_loaded(package: str, library: str, install: str) -> str | None:
    """Loads ``library`` of ``package``; returns None, or what is missing."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return install
    try:
        torch.ops.load_library(Path(found.origin).with_name(library))
    except OSError as error:  # built for another version of torch, or of another flavour
        return f"{install} ({error})"
    return None
