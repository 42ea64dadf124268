# SPDX-License-Identifier: Apache-2.0
"""Model folders of other producers: read into transformers models, and written."""

from anynpu.checkpoints.convert import convert_checkpoint
from anynpu.checkpoints.load import load_checkpoint

__all__ = ["convert_checkpoint", "load_checkpoint"]
