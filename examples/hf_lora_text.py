"""Adapting a small language model to other text by LoRA: forward gradient beside MeZO and backpropagation.

python examples/hf_lora_text.py                                                     (needs fwdgrad[transformers])

A GPT-2 of 0.36 million parameters first learns, by backpropagation, to spell the help pages of Python's ``pydoc``, byte
by byte. Adapters of rank 4 then learn the docstrings of PyTorch, with the rest frozen: directions are drawn over the
adapters alone. MeZO's estimate is the two-sided difference along one direction, engine="finite_difference" here.

FIGURES
"""

from __future__ import annotations

import argparse
import os
import pydoc_data.topics
import tempfile
import time
import warnings
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

import fwdgrad
from fwdgrad.integrations.transformers import EstimatorTrainer
from fwdgrad.memory import peak_bytes

transformers.utils.logging.set_verbosity_error()
warnings.simplefilter("ignore")
LENGTH = 64


def examples(text: str) -> list[dict[str, Tensor]]:
    """Cut a text into examples of LENGTH bytes."""
    tokens = torch.tensor([min(ord(letter), 127) for letter in text])
    rows = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
    return [{"input_ids": row, "labels": row} for row in rows]


def torch_docstrings() -> str:
    """Return the documentation of the functions in torch and torch.nn.functional."""
    found = [getattr(module, name).__doc__ for module in (torch, nn.functional) for name in dir(module)]
    return "\n".join(sorted({text for text in found if isinstance(text, str) and len(text) > 200}))


def train(model: nn.Module, data: list[Any], held_out: list[Any], steps: int, **settings: Any) -> tuple[float, float]:
    """Train through the Trainer of transformers; return the loss on held-out text and the seconds it took."""
    estimator = settings.pop("estimator")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=16,
            lr_scheduler_type="cosine",
            optim="adamw_torch",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            use_cpu=True,
            seed=0,
            **settings,
        )
        trainer = EstimatorTrainer(model, arguments, train_dataset=data, eval_dataset=held_out, estimator=estimator)
        start = time.perf_counter()
        trainer.train()
        return trainer.evaluate()["eval_loss"], time.perf_counter() - start


def adapters(state: dict[str, Tensor]) -> nn.Module:
    """Return the model that the state belongs to, frozen, with adapters of rank 4 on its attention."""
    torch.manual_seed(0)
    model = language_model()
    model.load_state_dict(state)
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True))


def language_model() -> nn.Module:
    """Return a small GPT-2 over bytes, with random weights."""
    size = {"n_embd": 96, "n_layer": 3, "n_head": 4, "n_positions": LENGTH}
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=128, bos_token_id=0, eos_token_id=0, **size, **rates))


def main() -> None:
    """Make the base model, adapt it by each method, print a row for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-steps", type=int, default=100)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    base = language_model()
    help_pages = examples("".join(pydoc_data.topics.topics.values()))
    loss, seconds = train(
        base, help_pages, help_pages[:32], arguments.base_steps, learning_rate=3e-3, estimator=fwdgrad.Backprop()
    )
    print(f"base model: loss {loss:.3f} on help pages after {seconds:.0f} s\n", flush=True)
    docstrings = examples(torch_docstrings())
    held_out = docstrings[:: len(docstrings) // 32][:32]
    seen = {id(row) for row in held_out}
    docstrings = [row for row in docstrings if id(row) not in seen]
    batch = {key: torch.stack([row[key] for row in docstrings[:16]]) for key in ("input_ids", "labels")}
    methods: dict[str, tuple[fwdgrad.Estimator, float]] = {
        "backprop": (fwdgrad.Backprop(), 1e-2),
        "forward gradient, K = 4": (fwdgrad.ForwardGradient("rademacher", 4, "dual"), 3e-3),
        "  one at a time": (fwdgrad.ForwardGradient("rademacher", 4, "dual", chunk_size=1), 3e-3),
        "forward gradient, K = 1": (fwdgrad.ForwardGradient("rademacher", 1, "dual"), 3e-3),
        "MeZO (two-sided)": (fwdgrad.ForwardGradient("normal", 1, "finite_difference"), 3e-3),
    }
    state = base.state_dict()
    print(f"{'method':26} {'loss':>7} {'seconds':>8} {'peak MB':>8}")
    for name, (estimator, rate) in methods.items():
        model = adapters(state)
        loss, seconds = train(model, docstrings, held_out, arguments.steps, learning_rate=rate, estimator=estimator)
        model.zero_grad()
        peak = peak_bytes(lambda: estimator(model, lambda model: model(**batch).loss)) / 1e6
        print(f"{name:26} {loss:7.3f} {seconds:8.1f} {peak:8.1f}", flush=True)
    with torch.inference_mode():
        before = train(adapters(state), docstrings, held_out, 1, learning_rate=0.0, estimator=fwdgrad.Backprop())[0]
        print(f"{'(no adaptation; inference)':26} {before:7.3f} {'':8} {peak_bytes(lambda: model(**batch)) / 1e6:8.1f}")


if __name__ == "__main__":
    main()
