# SPDX-License-Identifier: Apache-2.0
"""Two int4 layers in graph mode, written for torch_npu and torchair, with weights in FRACTAL_NZ.

anynpu run examples/python/torch_npu_graph.py
"""

import torch
import torch_npu
import torchair
from torchair.configs.compiler_config import CompilerConfig

FRACTAL_NZ = 29


class Int4Linear(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        codes = torch.randint(-8, 8, (outputs, inputs), dtype=torch.int32).npu()
        packed = torch_npu.npu_convert_weight_to_int4pack(torch_npu.npu_format_cast(codes, FRACTAL_NZ))
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scale", torch.full((1, outputs), 0.01, dtype=torch.float16))

    def forward(self, x):
        return torch_npu.npu_weight_quant_batchmatmul(x, self.weight.transpose(-1, -2), self.scale)


model = torch.nn.Sequential(Int4Linear(256, 512), torch.nn.SiLU(), Int4Linear(512, 128)).npu()
backend = torchair.get_npu_backend(compiler_config=CompilerConfig())
compiled = torch.compile(model, backend=backend, dynamic=True, fullgraph=True)

print(f"torchair backend: {backend.description}")
for tokens in (1, 5, 33):
    x = torch.randn(tokens, 256, dtype=torch.float16, device="npu")
    expected = model(x)
    difference = (compiled(x) - expected).abs().max().item()
    print(f"{tokens} tokens: largest difference to single operators {difference}")
    assert difference <= 0.01 * expected.abs().max().item()
