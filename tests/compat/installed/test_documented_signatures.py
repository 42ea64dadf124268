# SPDX-License-Identifier: Apache-2.0
"""The documents spell the arguments that the functions have: on the pages of operators all of them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

import anynpu

DOCS = Path(__file__).parents[3] / "docs"


def python_arguments(name: str) -> list[str]:
    """The arguments of ``anynpu.name`` as a call is written, ``*`` before those with keywords only."""
    parameters = inspect.signature(getattr(anynpu, name)).parameters.values()
    return written(
        [
            (each.name, each.default is not each.empty, each.default, each.kind is each.KEYWORD_ONLY)
            for each in parameters
        ]
    )


def published_arguments(name: str) -> list[str]:
    """The same of ``torch_npu.name``."""
    arguments = getattr(torch.ops.npu, name).default._schema.arguments
    return written([(each.name, each.has_default_value(), each.default_value, each.kwarg_only) for each in arguments])


def written(arguments: list[tuple[str, bool, object, bool]]) -> list[str]:
    listed = [(f"{name}={default!r}" if optional else name, keyword) for name, optional, default, keyword in arguments]
    first_keyword = next((i for i, (_, keyword) in enumerate(listed) if keyword), None)
    texts = [text for text, _ in listed]
    return texts if first_keyword is None else [*texts[:first_keyword], "*", *texts[first_keyword:]]


def calls(page: Path, pattern: str) -> list[tuple[str, list[str]]]:
    found = re.findall(rf"`{pattern}\(([^`]*)\)`", page.read_text())
    return [(name, re.split(r", (?![^\[(]*[\])])", text)) for name, text in found]


@pytest.mark.parametrize("page", sorted((DOCS / "ops").glob("*.md")), ids=lambda page: page.stem)
def test_pages_of_operators_have_whole_signatures(page):
    python = calls(page, r"anynpu\.(\w+)")
    assert python
    for name, arguments in python:
        assert arguments == python_arguments(name), name
    for name, arguments in calls(page, r"torch_npu\.(\w+)"):
        assert arguments == published_arguments(name), name


def test_other_functions_are_given_with_some_of_their_arguments():
    """Those without a default are among them, and what is given is in order and has its default."""
    documented = calls(DOCS / "torch_npu.md", r"(_?npu_\w+|scatter_\w+|fast_gelu)")
    assert documented
    for name, arguments in documented:
        every = published_arguments(name)
        kept = [text for text in every if text == "*" or text in arguments or "=" not in text]
        assert arguments == kept[: -1 if kept[-1] == "*" else None], name
