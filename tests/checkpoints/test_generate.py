# SPDX-License-Identifier: Apache-2.0
"""`anynpu generate --model`: the text of a checkpoint's own model and tokenizer."""

from __future__ import annotations

import checkpoint_folders as folders
import pytest
import torch
import transformers
from checkpoint_folders import mixture_of, model_of
from typer.testing import CliRunner

import anynpu
from anynpu.cli import app

tokenizers = pytest.importorskip("tokenizers", reason="makes a tokenizer")
WORDS = [f"w{i}" for i in range(folders.VOCABULARY)]


@pytest.fixture
def folder(tmp_path):
    folders.gptq(model_of(), tmp_path)
    return with_tokenizer(tmp_path)


def with_tokenizer(folder):
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("template", [None, "w7 {{ messages[0].content }}"])
def test_the_answer_of_a_folder(folder, template):
    tokens = [3, 14, 15]
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
        tokens = [7, *tokens]
    require_answer(folder, tokens)


@pytest.mark.parametrize("write", [folders.gptq, folders.compressed_int8])
def test_the_answer_of_a_mixture(tmp_path, write):
    write(mixture_of("qwen3_moe"), tmp_path)
    require_answer(with_tokenizer(tmp_path), [3, 14, 15])


def require_answer(folder, tokens):
    result = CliRunner().invoke(app, ["generate", "w3 w14 w15", "--tokens", "5", "--model", str(folder)])
    assert result.exit_code == 0, result.output
    ids = torch.tensor([tokens])
    model = anynpu.load_checkpoint(folder)
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)[
        0, len(tokens) :
    ]
    assert result.stdout.split() == [WORDS[token] for token in answer]


def test_what_cannot_be_answered(folder):
    both = CliRunner().invoke(app, ["generate", "w3", "--model", str(folder), "--weights", "int8"])
    assert both.exit_code == 2
    assert "--weights is for SmolLM2 only" in both.stderr
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    lost = CliRunner().invoke(app, ["generate", "w3", "--model", str(folder)])
    assert lost.exit_code == 1
    assert lost.stderr.splitlines()[-1].startswith("error: the tokenizer of")
    (folder / "model.safetensors").write_bytes(b"damaged")
    damaged = CliRunner().invoke(app, ["generate", "w3", "--model", str(folder)])
    assert damaged.exit_code == 1
    assert "load_checkpoint: " in damaged.stderr
