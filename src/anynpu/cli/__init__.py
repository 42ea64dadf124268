# SPDX-License-Identifier: Apache-2.0
"""The command ``anynpu``."""

from __future__ import annotations

import typer

from anynpu.cli.info import info
from anynpu.cli.run import run
from anynpu.cli.selftest import selftest

app = typer.Typer(
    help="Ascend NPU quantised operators on ordinary CPUs and GPUs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(context_settings={"allow_interspersed_args": False})(run)
app.command()(info)
app.command()(selftest)
