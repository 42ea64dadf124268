# SPDX-License-Identifier: Apache-2.0
"""A matmul with losslessly compressed int8 weights from end to end, written for torch_npu.

anynpu run examples/python/torch_npu_compressed_matmul.py [FOLDER]

Makes the data, compresses the weight, converts the scales, multiplies, and compares with the uncompressed product. With
FOLDER it also writes what examples/c/compressed_matmul.cpp reads: plain arrays in files.
"""

import sys
from pathlib import Path

import torch
import torch_npu

from anynpu.formats import Compressor

m, k, n = 512, 1024, 1024
torch.manual_seed(0)

x = torch.randint(-5, 5, (m, k), dtype=torch.int8)
weight = torch.randint(-5, 5, (n, k), dtype=torch.int8)
bias = torch.randint(-5, 5, (n,), dtype=torch.int32)
scale = torch.rand(n)

compressed, index, info = Compressor({"layer": weight}).run()
deq_scale = scale.view(torch.int32).to(torch.int64)  # read as int32, widened to int64

y = torch_npu.npu_matmul_compress_dequant(
    x.npu(), compressed["layer"].npu(), index["layer"].npu(), bias.npu(), deq_scale.npu()
)
expected = torch_npu.npu_quant_matmul(
    x.npu(), weight.t().npu(), scale.npu(), bias=bias.npu(), output_dtype=torch.float16
)

print(f"weight: {weight.nbytes} bytes, compressed {compressed['layer'].nbytes + index['layer'].nbytes}")
print(f"equal to the uncompressed product, bit for bit: {torch.equal(y, expected)}")
assert torch.equal(y, expected)

if len(sys.argv) > 1:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"x1": x, "x2": compressed["layer"], "compress_index": index["layer"], "compress_info": info["layer"]}
    arrays |= {"bias": bias, "deq_scale": deq_scale, "expected": expected.cpu()}
    for name, array in arrays.items():
        array.contiguous().numpy().tofile(folder / f"{name}.bin")
