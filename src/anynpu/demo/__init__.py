# SPDX-License-Identifier: Apache-2.0
"""The demonstration: torch_npu examples, and a real language model on anynpu's operators."""
