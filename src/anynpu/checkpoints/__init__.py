# SPDX-License-Identifier: Apache-2.0
"""Model folders of other producers: read into transformers models, and written."""

from anynpu.checkpoints.load import load_checkpoint

__all__ = ["load_checkpoint"]
