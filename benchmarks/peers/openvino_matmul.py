# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's MatMul with compressed int4 weights: activations quantised to int8 by groups (W4A8), or in bfloat16."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from measure import Variant, copies_in_one_model
from problems import MatmulProblem

NAME = "openvino"


def unavailable() -> str | None:
    """Whether the package is there."""
    return None if importlib.util.find_spec(NAME) else "pip install openvino"


def weight_quant_matmul(problem: MatmulProblem) -> Iterator[Variant]:
    """Like onnxruntime's, a model holds all copies of the weight, so that one run is one operation on each."""
    if problem.bits == 4 and problem.group_size:
        yield from int4_linear(problem)
        kept = {"INFERENCE_PRECISION_HINT": "bf16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        yield _matmul(problem, "openvino bf16", "W4A16", kept, torch.bfloat16, 2.0**-8)


def int4_linear(problem: MatmulProblem) -> Iterator[Variant]:
    """Activations in int8, with a scale for each group."""
    quantised = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(problem.group_size)}
    yield _matmul(problem, "openvino int8 groups", "W4A8", quantised, torch.float32, 2.0**-6)


def _matmul(
    problem: MatmulProblem, name: str, arithmetic: str, options: dict[str, str], dtype: torch.dtype, tolerance: float
) -> Variant:
    unsigned = (problem.weight.t() + 8).to(torch.uint8).contiguous().numpy()  # [N, K]; its zero is 8
    packed = unsigned[:, ::2] | unsigned[:, 1::2] << 4
    scale = problem.scale.t().half().contiguous().numpy()  # [N, G]
    copies = copies_in_one_model(packed.nbytes + scale.nbytes, 4 * problem.m * problem.n)
    request = _request(problem, options, packed, scale, copies)

    def call() -> torch.Tensor:
        request.infer()
        return torch.from_numpy(request.get_output_tensor(0).data)

    return Variant(
        name=name,
        arithmetic=arithmetic,
        calls=[call],
        expected=lambda: problem.expected(dtype),
        tolerance=tolerance,
        bytes=packed.nbytes + scale.nbytes + 4 * problem.m * (problem.k + problem.n),
        operations_per_call=copies,
    )


def _request(
    problem: MatmulProblem, options: dict[str, str], packed: np.ndarray, scale: np.ndarray, copies: int
) -> Any:
    import openvino
    from openvino import opset13

    groups = [problem.n, problem.k // problem.group_size]
    zero = openvino.Tensor(openvino.Type.u4, [*groups, 1])
    zero.data[:] = 0x88
    inputs, results = [], []
    for copy in range(copies):
        codes = openvino.Tensor(openvino.Type.u4, [*groups, problem.group_size])
        codes.data[:] = (packed ^ np.uint8(37 * copy & 255)).reshape(codes.data.shape)  # copy 0 is the weight itself
        integers = opset13.subtract(
            opset13.convert(openvino.op.Constant(codes), "f16"), opset13.convert(openvino.op.Constant(zero), "f16")
        )
        scaled = opset13.multiply(integers, opset13.constant(scale[..., None]))
        weight = opset13.convert(opset13.reshape(scaled, opset13.constant([problem.n, problem.k]), False), "f32")
        inputs.append(opset13.parameter([problem.m, problem.k], np.float32))  # products of one input would be fused
        results.append(opset13.result(opset13.matmul(inputs[-1], weight, False, True)))
    threads = {"INFERENCE_NUM_THREADS": str(torch.get_num_threads()), "NUM_STREAMS": "1"}
    model = openvino.Core().compile_model(openvino.Model(results, inputs, "copies"), "CPU", {**threads, **options})
    request = model.create_infer_request()
    x = openvino.Tensor(problem.x.numpy())
    for copy in range(copies):
        request.set_input_tensor(copy, x)
    return request
