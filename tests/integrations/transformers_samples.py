"""Tiny random models and data; nothing is fetched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from torch import Tensor, nn
from transformers import TrainingArguments

transformers.utils.logging.set_verbosity_error()
SIZE = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = 30


def bert(**kwargs: Any) -> nn.Module:
    config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=16, **SIZE, **kwargs)
    return transformers.BertForSequenceClassification(config)


def gpt2(**kwargs: Any) -> nn.Module:
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=WORDS, **size, **kwargs))


def llama(**kwargs: Any) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=WORDS, num_key_value_heads=1, max_position_embeddings=16, attention_dropout=0.1, **SIZE, **kwargs
    )
    return transformers.LlamaForCausalLM(config)


MODELS = {"bert": bert, "gpt2": gpt2, "llama": llama}


def make(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name](**kwargs)


def examples(name: str, count: int = 16) -> list[dict[str, Tensor]]:
    """Return padded sequences; every other one is padded at its end."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(count):
        tokens = torch.randint(1, WORDS, (8,), generator=generator)
        mask = torch.ones(8, dtype=torch.long)
        mask[8 - 3 * (index % 2) :] = 0
        labels = torch.tensor(index % 2) if name == "bert" else tokens.masked_fill(mask == 0, -100)
        rows.append({"input_ids": tokens, "attention_mask": mask, "labels": labels})
    return rows


def batch(name: str) -> dict[str, Tensor]:
    rows = examples(name, 4)
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def arguments(folder: Path, **kwargs: Any) -> TrainingArguments:
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "logging_steps": 1}
    plain = {"per_device_train_batch_size": 4, "optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    return TrainingArguments(str(folder), **{**quiet, **plain, "max_steps": 4, "seed": 0, **kwargs})


def flat(model: nn.Module) -> Tensor:
    return torch.cat([param.detach().flatten() for param in model.parameters()])
