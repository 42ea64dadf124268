# SPDX-License-Identifier: Apache-2.0
"""``python -m anynpu``: the same as the command ``anynpu``."""

from anynpu.cli import app

app(prog_name="anynpu")
