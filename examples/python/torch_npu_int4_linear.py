# SPDX-License-Identifier: Apache-2.0
"""A linear layer with int4 weights, written for torch_npu: single operators.

anynpu run examples/python/torch_npu_int4_linear.py
"""

import torch
import torch_npu

tokens, inputs, outputs, group_size = 8, 512, 256, 128

weight = torch.randn(inputs, outputs)
x = torch.randn(tokens, inputs, dtype=torch.float16)

# Asymmetric int4, a scale and an offset for each group of 128 inputs: weight ~ (codes + offset) * scale.
groups = weight.reshape(inputs // group_size, group_size, outputs)
low, high = groups.amin(1), groups.amax(1)
scale = (high - low) / 15
offset = torch.round(low / scale) + 8
codes = torch.clamp(torch.round(groups / scale[:, None] - offset[:, None]), -8, 7).to(torch.int32)

packed = torch_npu.npu_convert_weight_to_int4pack(codes.reshape(inputs, outputs).npu())
y = torch_npu.npu_weight_quant_batchmatmul(
    x.npu(), packed, scale.half().npu(), offset.half().npu(), antiquant_group_size=group_size
)

exact = x.float() @ weight
error = (y.cpu().float() - exact).norm() / exact.norm()
print(f"{torch.npu.get_device_name()}: {weight.numel() * 4} bytes of weights became {packed.nbytes}")
print(f"relative error of int4 weights: {error:.3f}")
assert error < 0.15
