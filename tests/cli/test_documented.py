# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import typer

from anynpu.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_every_command_is_on_the_page():
    commands = typer.main.get_command(app).commands
    assert len(commands) > 5
    page = PAGE.read_text()
    assert [name for name in commands if f"`{name}`" not in page and f"`{name} " not in page] == []
