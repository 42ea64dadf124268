# SPDX-License-Identifier: Apache-2.0
"""The operators: a folder each, all of the same shape. Importing anynpu registers them with torch."""
