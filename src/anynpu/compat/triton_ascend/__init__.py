# SPDX-License-Identifier: Apache-2.0
"""What programs for triton-ascend ask of Triton: a backend ``npu``, which runs kernels in Triton's interpreter.

The entry point in ``modules/anynpu_shim.egg-info`` names it to Triton. ``cann`` holds ``triton.language.extra.cann``.
"""
