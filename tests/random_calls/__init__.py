# SPDX-License-Identifier: Apache-2.0
"""Random valid calls of the operators, compared with their oracles: ``python -m random_calls`` in the folder above."""
