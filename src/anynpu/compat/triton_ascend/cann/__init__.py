# SPDX-License-Identifier: Apache-2.0
"""``triton.language.extra.cann``: what the vendor's Triton adds to the language."""
