# SPDX-License-Identifier: Apache-2.0
"""Trains a small model on npu with the Trainer of transformers, then generates with it: anynpu run npu_trainer.py

Needs transformers and accelerate.
"""

import tempfile

import torch
import torch_npu  # noqa: F401  provides the device
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

PERIOD = 8  # the model learns to count: 3, 4, ..., 10, 3, 4, ...


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    counted = 3 + torch.arange(64) % PERIOD
    rows = [{"input_ids": counted[i : i + 16], "labels": counted[i : i + 16]} for i in range(PERIOD)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=60,
            per_device_train_batch_size=PERIOD,
            learning_rate=1e-2,
            bf16=True,
            optim="adamw_torch_npu_fused",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(model=LlamaForCausalLM(config), args=arguments, train_dataset=rows)
        trainer.train()
    print("device:", trainer.args.device)
    start = torch.tensor([[3, 4, 5]], device="npu")
    tokens = trainer.model.eval().generate(start, attention_mask=torch.ones_like(start), max_new_tokens=6)
    print("counted:", *tokens[0].tolist())


if __name__ == "__main__":
    main()
