# SPDX-License-Identifier: Apache-2.0
"""torch_npu.contrib and torch_npu.utils."""

from __future__ import annotations

import os

import pytest
import torch
import torch_npu
from torch_npu.contrib import function, module


def test_functions():
    x = torch.randn(2, 3, 4, 5, device="npu", requires_grad=True)
    rolled = function.roll(x, shifts=(-1, 2), dims=(1, 2))
    assert torch.equal(rolled[:, 0, 2], x[:, 1, 0]) and torch.autograd.grad(rolled.sum(), x)[0].unique().tolist() == [1]
    assert torch_npu.contrib.matmul_transpose(x, x).shape == (2, 3, 4, 4)
    low = function.npu_fast_condition_index_put(x, x < 0.5, 0.5)
    assert torch.equal(low, x.clamp(min=0.5))
    mask = torch.zeros(1, 1, 4, 5)
    mask[..., 4] = -torch.inf
    scores = function.fuse_add_softmax_dropout(False, torch.nn.Identity(), mask, x, 4)
    torch.testing.assert_close(scores[..., :4], (x[..., :4] / 2).softmax(-1))
    assert scores[..., 4].abs().max() == 0
    dropped = function.dropout_with_byte_mask(torch.ones(100, device="npu"), 0.5)
    assert dropped.unique().tolist() == [0, 2]
    with pytest.raises(TypeError, match="condition must be torch.bool, got torch.float32"):
        function.npu_fast_condition_index_put(x, x, 0.5)
    with pytest.raises(ValueError, match="roll: wants a 4-D tensor, 2 shifts and 2 dims, got 3-D, 1 and 2"):
        function.roll(x[0], (1,), (0, 1))
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\] and inplace False, got 2 and False"):
        function.dropout_with_byte_mask(x, 2)
    with pytest.raises(NotImplementedError, match="torch_npu.contrib.function.npu_iou is not implemented"):
        _ = function.npu_iou


def test_a_prefetcher_moves_pairs():
    data = torch.utils.data.TensorDataset(torch.arange(6.0), torch.arange(6))
    prefetcher = module.Prefetcher(torch.utils.data.DataLoader(data, batch_size=4))
    pairs = [prefetcher.next() for _ in range(3)]
    assert [inputs.tolist() for inputs, _ in pairs[:2]] == [[0, 1, 2, 3], [4, 5]]
    assert pairs[0][1].is_npu and pairs[2] == (None, None)


def test_channel_shuffle():
    x1, x2 = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    first, second = module.ChannelShuffle(8)(x1, x2)
    assert torch.equal(first, torch.stack([x1[:, :2], x2[:, :2]], 2).flatten(1, 2))
    assert torch.equal(module.ChannelShuffle(8, split_shuffle=False)(x1, x2), torch.cat([first, second], 1))


def test_label_smoothing():
    pred, target = torch.randn(5, 10, dtype=torch.float64), torch.randint(10, (5,))
    off = 0.1 / 9  # torch gives every class 0.1 of the uniform distribution, the target too
    expected = torch.nn.functional.cross_entropy(pred, target, label_smoothing=10 * off)
    got = module.LabelSmoothingCrossEntropy(10, 0.1)(pred, target)
    assert got.dtype == torch.float32  # a conversion, four sums and a division are rounded
    torch.testing.assert_close(got.double(), expected, rtol=6 * 2**-24, atol=0)


def test_dropped_paths():
    layer, x = module.NpuDropPath(0.5), torch.ones(64, 3, 2)
    layer.enable_droppath_ensemble(torch.nn.Identity())
    dropped = layer(x).flatten(1)
    assert dropped[:, 0].unique().tolist() == [0, 2] and torch.equal(dropped, dropped[:, :1].expand(-1, 6))
    assert torch.equal(layer.eval()(x), x)
    assert module.DropoutWithByteMask(1.0)(x).abs().sum() == 0


def test_layers_of_models():
    focus = module.Focus(3, 6, k=3).npu().eval()
    image = torch.randn(2, 3, 8, 6, device="npu")
    pixels = torch.nn.functional.pixel_unshuffle(image, 2).unflatten(1, (3, 4))  # by row, then column
    parts = pixels[:, :, [0, 2, 1, 3]].transpose(1, 2).flatten(1, 2)
    expected = torch.nn.functional.conv2d(parts, focus.conv.conv.weight, padding=1) / (1 + focus.conv.bn.eps) ** 0.5
    torch.testing.assert_close(focus(image), torch.nn.functional.leaky_relu(expected, 0.1))
    x = torch.randn(5, 2, 4)
    lstm = module.BiLSTM(4, 3)
    both = torch.nn.LSTM(4, 3, bidirectional=True)
    state = {name.removeprefix("fw_rnn."): value for name, value in lstm.state_dict().items() if "fw" in name}
    state |= {name[len("bw_rnn.") :] + "_reverse": value for name, value in lstm.state_dict().items() if "bw" in name}
    both.load_state_dict(state)
    torch.testing.assert_close(lstm(x), both(x)[0])
    assert torch.equal(torch_npu.contrib.Swish()(x), torch.nn.functional.silu(x))


def test_save_async_has_saved(tmp_path):
    x = torch.ones(3, device="npu")
    torch_npu.utils.save_async({"x": x}, tmp_path / "x.pt", model=torch.nn.Identity())
    x.zero_()
    assert torch.load(tmp_path / "x.pt")["x"].tolist() == [1, 1, 1]


def test_threads_keep_to_cores():
    cores = os.sched_getaffinity(0)
    first = min(cores)
    torch_npu.utils.set_thread_affinity([[first, first]])
    assert os.sched_getaffinity(0) == {first}
    torch_npu.utils.set_thread_affinity()
    assert os.sched_getaffinity(0) == cores
    with pytest.raises(ValueError, match=r"a range must be \[first, last\] with first <= last, got \[2, 1\]"):
        torch_npu.utils.set_thread_affinity([2, 1])
