# SPDX-License-Identifier: Apache-2.0
"""The command ``anynpu``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from anynpu._version import __version__
from anynpu.cli import compress, convert, demo, generate, info, run, selftest, toolkit
from anynpu.cli.errors import fail


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """A file that is missing or cannot be executed is the user's to fix, whichever command wanted it."""
        try:
            return super().invoke(ctx)
        except (FileNotFoundError, PermissionError) as error:
            fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"anynpu {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Ascend NPU quantised operators on ordinary CPUs and GPUs."""


_PASS_ON = {"allow_interspersed_args": False}  # what follows the script or program belongs to it

app.command(context_settings=_PASS_ON)(run.run)
app.command()(info.info)
app.command()(selftest.selftest)
app.command()(demo.demo)
app.command()(compress.compress)
app.command()(compress.decompress)
app.command()(compress.inspect)
app.command()(convert.convert)
app.command()(generate.generate)
app.command()(toolkit.toolkit)
app.command(context_settings={**_PASS_ON, "ignore_unknown_options": True})(toolkit.cc)
app.command(context_settings=_PASS_ON)(toolkit.check)
