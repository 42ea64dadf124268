# SPDX-License-Identifier: Apache-2.0
"""``anynpu convert``: a quantised model folder in another producer's layout."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from anynpu.checkpoints import convert_checkpoint
from anynpu.cli import consoles
from anynpu.cli.errors import USAGE, fail


class Layout(str, Enum):
    """What to write."""

    anynpu = "anynpu"
    msmodelslim = "msmodelslim"
    compressed_tensors = "compressed-tensors"


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", exists=True, help="The model folder, or GGUF file, to read.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write, which must not exist.")],
    to: Annotated[Layout, typer.Option(help="msmodelslim for vllm-ascend, compressed-tensors for vLLM.")],
) -> None:
    """Write a model folder in another producer's layout.

    Codes and scales stay as they are.
    """
    try:
        with consoles.progress() as bar:
            task = bar.add_task(source.name, total=None)
            count = convert_checkpoint(source, target, to.value, lambda name: bar.advance(task))
    except ImportError as error:
        fail(str(error), USAGE)
    except (ValueError, TypeError, FileExistsError) as error:
        fail(str(error))
    print(f"{target}: {count} quantised layers")
