# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from anynpu.cli import app
from anynpu.formats import Compressor, compress_file, decompress_file
from anynpu.formats.compressed import CompressedWeight, decompress_weight
from anynpu.formats.compressed_files import compressed_weights, is_up_to_date, quantize_symmetric


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "layer.weight": torch.randint(-9, 10, (100, 300), dtype=torch.int8, generator=generator),
        "layer.bias": torch.arange(100, dtype=torch.int32),
        "head": torch.randint(-9, 10, (3, 5), dtype=torch.int8, generator=generator),
        "norm.weight": torch.ones(7),
        "float.weight": torch.randn(64, 128, generator=generator),
        "empty.weight": torch.zeros(0, 4, dtype=torch.int8),
    }


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path, {"format": "pt"})
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_round_trip_of_a_file(source, tmp_path):
    packed, restored = tmp_path / "out" / "packed.safetensors", tmp_path / "restored.safetensors"
    summaries = compress_file(source, packed)
    assert {row.name for row in summaries} == {"layer.weight", "head"}
    assert load_file(packed).keys() == {
        *("layer.weight", "layer.index", "layer.info", "layer.bias", "head.weight", "head.index", "head.info"),
        *("norm.weight", "float.weight", "empty.weight"),
    }
    assert packed.stat().st_size < source.stat().st_size
    assert decompress_file(packed, restored) == 2
    result = load_file(restored)
    assert result.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert result[name].dtype == tensor.dtype
        assert torch.equal(result[name], tensor)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_float_weights_are_quantised_on_request(source, tmp_path, granularity):
    packed = tmp_path / "packed.safetensors"
    summaries = {row.name: row for row in compress_file(source, packed, granularity)}
    assert summaries["float.weight"].granularity == granularity
    codes, scale = quantize_symmetric(tensors()["float.weight"], granularity)
    weights = {name: weight for name, _, weight in compressed_weights(packed)}
    assert torch.equal(decompress_weight(weights["float.weight"]), codes)
    assert torch.equal(load_file(packed)["float.weight_scale"], scale)
    # Half a step, and the float32 rounding of one division and one product.
    error = (codes * scale - tensors()["float.weight"]).abs()
    assert torch.all(error <= scale * (0.5 + 127 * 2.0**-22))


def test_compressor_exports_what_it_returns(tmp_path):
    weight = {"a.weight": tensors()["layer.weight"], "b": tensors()["head"]}
    compressor = Compressor(weight)
    with pytest.raises(ValueError, match="call run"):
        compressor.export_safetensors(tmp_path / "x.safetensors")
    streams, indexes, infos = compressor.run()
    compressor.export_safetensors(tmp_path / "x.safetensors")
    saved = load_file(tmp_path / "x.safetensors")
    for layer, tensor in (("a", weight["a.weight"]), ("b", weight["b"])):
        assert torch.equal(saved[f"{layer}.weight"], streams[layer])
        assert torch.equal(saved[f"{layer}.index"], indexes[layer])
        assert infos[layer].tolist() == [8, 8, tensor.shape[1], tensor.shape[0], 1]
        parts = [saved[f"{layer}.{part}"] for part in ("weight", "index", "info")]
        assert torch.equal(decompress_weight(CompressedWeight(*parts)), tensor)


def test_names_that_clash_are_refused(tmp_path):
    path = tmp_path / "clash.safetensors"
    save_file({"a": tensors()["head"], "a.weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="two tensors of .* would be called a.weight"):
        compress_file(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_run_that_fails_leaves_nothing(source, tmp_path, monkeypatch):
    folder = tmp_path / "out"

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("anynpu.formats.compressed_files.os.replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        compress_file(source, folder / "packed.safetensors")
    assert list(folder.iterdir()) == []


def test_a_killed_run_leaves_no_half_file(source, tmp_path):
    target = tmp_path / "out" / "packed.safetensors"
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        import anynpu.formats.compressed_files as files
        files.os.replace = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
        files.compress_file(Path(sys.argv[1]), Path(sys.argv[2]))
    """
    assert subprocess.run([sys.executable, "-c", code, source, target]).returncode == -signal.SIGKILL
    assert [path for path in target.parent.iterdir() if not path.name.startswith(".")] == []
    assert run("compress", source, target).exit_code == 0 and target.exists()


def test_commands_on_a_folder_resume(source, tmp_path):
    out = tmp_path / "out"
    folder = tmp_path / "in" / "sub"
    folder.mkdir(parents=True)
    source.rename(folder / "model.safetensors")
    first = run("compress", tmp_path / "in", out)
    assert first.exit_code == 0, first.output
    assert "2 weights" in first.output and "scale: int8" in " ".join(first.output.split())
    assert "sub/model" in first.output  # files of a folder may hold the same names
    packed = out / "sub" / "model.safetensors"
    assert is_up_to_date(folder / "model.safetensors", packed, None)
    before = packed.stat().st_mtime_ns
    again = run("compress", tmp_path / "in", out)
    assert again.exit_code == 0 and "is up to date" in " ".join(again.output.split())
    assert packed.stat().st_mtime_ns == before
    assert run("compress", tmp_path / "in", out, "--quantize", "tensor").exit_code == 0
    assert packed.stat().st_mtime_ns != before


def test_output_to_a_pipe_is_whole_and_errors_name_the_file_once(tmp_path):
    name = "model.layers.10.a_rather_long_name_of_a_block.another_long_name.down_proj.weight"
    source, packed = tmp_path / "model.safetensors", tmp_path / "packed.safetensors"
    save_file({name: tensors()["head"]}, source)
    for command in (("compress", source, packed), ("inspect", packed)):
        result = run(*command)
        assert name in result.stdout and "1 weight, 15 values" in result.stdout
        assert "\n\n" not in result.output
    refused = run("inspect", source)
    assert refused.output.count(str(source)) == 1


def test_inspect_verifies(source, tmp_path):
    packed = tmp_path / "packed.safetensors"
    assert run("compress", source, packed).exit_code == 0
    shown = run("inspect", packed, "--json")
    rows = {row["name"]: row for row in json.loads(shown.stdout)}
    assert rows["layer.weight"]["shape"] == [100, 300]
    data = bytearray(packed.read_bytes())
    stream = load_file(packed)["layer.weight"].numpy().tobytes()
    data[data.index(stream) + 50] ^= 1
    packed.write_bytes(bytes(data))
    damaged = run("inspect", packed)
    assert damaged.exit_code == 1
    assert "block 0 of the compressed weight" in damaged.output
    assert run("decompress", packed, tmp_path / "restored.safetensors").exit_code == 1
    assert not (tmp_path / "restored.safetensors").exists()


@pytest.mark.parametrize(
    ("record", "match"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold an object"),
        ('{"version": 2}', "newer version"),
        ('{"version": 1}', "must have layer and granularity"),
        ('{"version": 1, "weights": {"a": 1}}', "must have layer and granularity"),
        ('{"version": 1, "weights": {"a": {"layer": 1, "granularity": "int8"}}}', "must have layer and granularity"),
        ('{"version": 1, "weights": {"a": {"layer": "b", "granularity": "int8"}}}', "b.weight"),
        ('{"version": 1, "weights": {"a": {"layer": "a", "granularity": "int8"}}}', "int64"),
    ],
)
def test_foreign_metadata_is_refused(tmp_path, record, match):
    path = tmp_path / "foreign.safetensors"
    save_file(
        {"a.weight": torch.ones(3), "a.index": torch.ones(8), "a.info": torch.ones(5)}, path, {"anynpu.c8": record}
    )
    for command in (("inspect", path), ("decompress", path, tmp_path / "out.safetensors")):
        result = run(*command)
        assert result.exit_code == 1
        assert "Traceback" not in result.output
        assert re.search(match, " ".join(result.output.split()))
    assert not (tmp_path / "out.safetensors").exists()


def test_damaged_files_are_refused(source, tmp_path):
    out = tmp_path / "out.safetensors"
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2])
    for call in (compress_file, decompress_file):
        with pytest.raises(ValueError, match=f"{source} is no safetensors file or damaged"):
            call(source, out)
        with pytest.raises(FileNotFoundError, match="missing.safetensors is missing"):
            call(tmp_path / "missing.safetensors", out)
    parts = {
        "a.weight": torch.ones(3),
        "a.index": torch.ones(8, dtype=torch.int8),
        "a.info": torch.tensor([8, 8, 2, 2, 1]),
    }
    record = {"version": 1, "weights": {"a": {"layer": "a", "granularity": "int8"}}}
    for left_out, kind, match in (
        ("a.index", ValueError, "a.index cannot be read: File does not contain tensor a.index"),
        (None, TypeError, "stream must be int8, got float32"),
    ):
        save_file(
            {name: part for name, part in parts.items() if name != left_out}, source, {"anynpu.c8": json.dumps(record)}
        )
        with pytest.raises(kind, match=match):
            decompress_file(source, out)
        result = run("inspect", source)
        assert result.exit_code == 1 and match in " ".join(result.output.split())


def test_commands_refuse_what_they_cannot_do(source, tmp_path):
    for arguments, text in (
        (("inspect", source), "holds no weights compressed by anynpu"),
        (("decompress", source, tmp_path / "x"), "holds no weights compressed by anynpu"),
        (("compress", source, source), "must be another file"),
        (("compress", source, tmp_path), "OUT must be a file when IN is one, got"),
        (("decompress", source, Path("/dev/full")), "OUT must be a file when IN is one, got /dev/full"),
        (("compress", source, source / "x"), f"{source}: File exists"),
        (("compress", tmp_path / "missing", tmp_path / "x"), "does not exist"),
    ):
        result = run(*arguments)
        assert result.exit_code != 0
        assert text in " ".join(result.output.split())
