# SPDX-License-Identifier: Apache-2.0
"""Weights of other producers, converted to the convention of weight_quant_matmul."""

from anynpu.formats.awq import from_awq
from anynpu.formats.compressed import CompressedWeight, Int8Codec, compress_weight, decompress_weight
from anynpu.formats.compressed_files import Compressor, compress_file, decompress_file
from anynpu.formats.compressed_tensors import from_compressed_tensors
from anynpu.formats.experts import ExpertWeights, from_int8, load_experts, stack_experts
from anynpu.formats.gguf import from_gguf
from anynpu.formats.gptq import from_gptq
from anynpu.formats.msmodelslim import from_msmodelslim_w4a8
from anynpu.formats.quantized_weight import QuantizedWeight

__all__ = [
    "CompressedWeight",
    "Compressor",
    "ExpertWeights",
    "Int8Codec",
    "QuantizedWeight",
    "compress_file",
    "compress_weight",
    "decompress_file",
    "decompress_weight",
    "from_awq",
    "from_compressed_tensors",
    "from_gguf",
    "from_gptq",
    "from_int8",
    "from_msmodelslim_w4a8",
    "load_experts",
    "stack_experts",
]
