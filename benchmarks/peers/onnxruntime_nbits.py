# SPDX-License-Identifier: Apache-2.0
"""onnxruntime's MatMulNBits: accuracy_level 4 rounds the activations to int8 (W4A8), level 0 keeps them in float32."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Variant, copies_in_one_model
from problems import MatmulProblem

NAME = "onnxruntime"
_ARITHMETIC = {0: "W4A32", 4: "W4A8"}
_TOLERANCE = {0: 1e-5, 4: 2.0**-6}  # int8 activations, by block: half of 1/127 of the block's largest


def unavailable() -> str | None:
    """Whether the packages are there."""
    missing = [package for package in ("onnxruntime", "onnx") if importlib.util.find_spec(package) is None]
    return f"pip install {' '.join(missing)}" if missing else None


def weight_quant_matmul(problem: MatmulProblem) -> Iterator[Variant]:
    """Both accuracy levels; the model holds all copies of the weight, so that one run is one operation on each."""
    if problem.bits == 4 and problem.group_size:
        for level in _ARITHMETIC:
            yield _matmul_nbits(problem, level)


def _matmul_nbits(problem: MatmulProblem, level: int) -> Variant:
    unsigned = (problem.weight.t() + 8).to(torch.uint8).contiguous().numpy()  # [N, K]; its zero is 8
    blocks = (unsigned[:, ::2] | unsigned[:, 1::2] << 4).reshape(problem.n, -1, problem.group_size // 2)
    scale = problem.scale.t().contiguous().numpy()  # [N, G]
    copies = copies_in_one_model(blocks.nbytes + scale.nbytes, 4 * problem.m * problem.n)
    session, binding = _session(problem, level, blocks, scale, copies)

    def call() -> torch.Tensor:
        session.run_with_iobinding(binding)
        return torch.from_numpy(binding.get_outputs()[0].numpy())

    return Variant(
        name=f"onnxruntime level {level}",
        arithmetic=_ARITHMETIC[level],
        calls=[call],
        expected=lambda: problem.expected(torch.float32),
        tolerance=_TOLERANCE[level],
        bytes=blocks.nbytes + scale.nbytes + 4 * problem.m * (problem.k + problem.n),
        operations_per_call=copies,
    )


def _session(problem: MatmulProblem, level: int, blocks: np.ndarray, scale: np.ndarray, copies: int) -> tuple[Any, Any]:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes, initialisers, outputs = [], [], []
    for copy in range(copies):
        changed = blocks ^ np.uint8(37 * copy & 255)  # equal initialisers would be merged; copy 0 is the weight itself
        initialisers += [numpy_helper.from_array(changed, f"b{copy}"), numpy_helper.from_array(scale, f"s{copy}")]
        attributes = {"K": problem.k, "N": problem.n, "bits": 4, "block_size": problem.group_size}
        inputs = ["x", f"b{copy}", f"s{copy}"]
        domain = "com.microsoft"
        nodes.append(
            helper.make_node("MatMulNBits", inputs, [f"y{copy}"], domain=domain, accuracy_level=level, **attributes)
        )
        outputs.append(helper.make_tensor_value_info(f"y{copy}", TensorProto.FLOAT, [problem.m, problem.n]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [problem.m, problem.k])
    model = helper.make_model(
        helper.make_graph(nodes, "copies", [x], outputs, initialisers),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)],
        ir_version=10,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "copies.onnx")
        onnx.save(model, path, save_as_external_data=True, location="copies.data", size_threshold=1024)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(problem.x.numpy()))
    for copy in range(copies):
        binding.bind_output(f"y{copy}", "cpu")
    return session, binding
