# SPDX-License-Identifier: Apache-2.0
"""How commands report what the user can fix: one line on stderr and an exit code, no traceback."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console

USAGE = 2


def fail(message: str, exit_code: int = 1) -> NoReturn:
    """Prints ``error: message``, whose lines become one, to stderr and leaves the command."""
    line = " ".join(part.strip() for part in message.splitlines())
    Console(stderr=True, soft_wrap=True).print(f"error: {line}", style="red", markup=False, highlight=False)
    raise typer.Exit(exit_code)
