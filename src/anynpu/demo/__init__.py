# SPDX-License-Identifier: Apache-2.0
"""The demonstration: a torch_npu example, and a real language model on anynpu's operators."""
