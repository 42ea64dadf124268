# SPDX-License-Identifier: Apache-2.0
"""Where commands print."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_WIDE = 1000


def output() -> Console:
    """stdout, as wide as the terminal; a file or pipe gets every line and name whole."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)


@contextlib.contextmanager
def stages(console: Console) -> Iterator[Callable[[str], None]]:
    """What tells the stage that a long command has reached: beside a spinner, or on lines if there is no terminal."""
    if not console.is_terminal:
        yield lambda stage: console.print(stage, soft_wrap=True, highlight=False, markup=False)
        return
    with console.status("") as status:
        yield status.update


def progress() -> Progress:
    """A bar on stderr that goes away at the end; none where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
