# SPDX-License-Identifier: Apache-2.0
"""``torchair.core.utils``: where the documents' samples import the logger from."""

from __future__ import annotations

import logging

logger = logging.getLogger("torchair")
