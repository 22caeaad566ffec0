"""Training through the real Trainer, accelerate and peft."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fwdgrad
from fwdgrad.optim import FactoredSGD

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("peft")

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback
from transformers_samples import MODELS, arguments, batch, examples, flat, make

from fwdgrad.integrations.transformers import EstimatorTrainer, check_supported

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the libraries themselves


def forward(engine: str = "dual", **kwargs: Any) -> fwdgrad.ForwardGradient:
    return fwdgrad.ForwardGradient("rademacher", engine=engine, **{"num_directions": 2, **kwargs})


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("engine", ["func", "dual"])
@pytest.mark.parametrize("name", MODELS)
def test_directional_derivatives_are_those_of_the_gradient(name: str, engine: str, attention: str) -> None:
    model = make(name, attn_implementation=attention).eval()
    inputs = batch(name)
    estimator = forward(engine)
    nodes = torch._C._autograd._get_sequence_nr()
    loss = estimator(model, lambda model: model(**inputs).loss)
    assert torch._C._autograd._get_sequence_nr() == nodes
    estimate = torch.cat([param.grad.flatten() for param in model.parameters()])
    model.zero_grad()
    exact = fwdgrad.Backprop()(model, lambda model: model(**inputs).loss)
    gradient = torch.cat([param.grad.flatten() for param in model.parameters()])
    torch.testing.assert_close(loss, exact)
    # estimate = sum_k d_k v_k / K, so that its product with the gradient is the mean square of the derivatives
    squares = estimator.last.directional_derivatives.square().mean()
    torch.testing.assert_close(estimate @ gradient, squares, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", ["func", "dual", "finite_difference"])
@pytest.mark.parametrize("name", MODELS)
def test_trainer_trains_without_a_graph(name: str, engine: str, tmp_path: Path) -> None:
    model = make(name)
    before = flat(model)
    nodes: list[int] = []

    class Nodes(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            nodes.append(-torch._C._autograd._get_sequence_nr())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            nodes[-1] += torch._C._autograd._get_sequence_nr()

    trainer = EstimatorTrainer(
        model,
        arguments(tmp_path, max_grad_norm=1.0),
        train_dataset=examples(name),
        eval_dataset=examples(name),
        estimator=forward(engine),
        callbacks=[Nodes()],
    )
    trainer.train()
    assert nodes == [0] * 4
    assert not torch.equal(flat(model), before)
    assert len([row for row in trainer.state.log_history if "loss" in row]) == 4
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.accelerator.backward.__func__ is Accelerator.backward


@pytest.mark.parametrize("name", ["bert", "gpt2"])  # gpt2 normalises its loss by the tokens of all accumulated batches
def test_accumulated_batches_add_up_as_with_backpropagation(name: str, tmp_path: Path) -> None:
    """An estimator that asks the closure for the exact gradient must end where the Trainer itself does."""

    class Exact:
        """Backpropagation in the place of an estimator."""

        last = None

        def __call__(self, model: nn.Module, closure: Any) -> Tensor:
            return fwdgrad.Backprop()(model, closure)

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.step = state["step"]

    ends = []
    for estimator in (Exact(), fwdgrad.Backprop()):
        model = make(name)
        settings = arguments(tmp_path, gradient_accumulation_steps=2, max_steps=2, max_grad_norm=0.1)
        EstimatorTrainer(model, settings, train_dataset=examples(name), estimator=estimator).train()
        ends.append(flat(model))
    assert torch.equal(*ends)


def test_schedules_and_clipping(tmp_path: Path) -> None:
    model = make("bert")
    before = flat(model)
    settings = arguments(tmp_path, max_grad_norm=0.01, learning_rate=1.0, lr_scheduler_type="linear")
    trainer = EstimatorTrainer(model, settings, train_dataset=examples("bert"), estimator=forward())
    trainer.train()
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert 0 < (flat(model) - before).norm() <= 0.01 * sum(rates) * 1.001


@pytest.mark.parametrize("engine", ["func", "dual"])
def test_bfloat16(engine: str, tmp_path: Path) -> None:
    seen = []
    for bf16 in (False, True):
        model = make("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        estimator = forward(engine)
        settings = arguments(tmp_path, bf16=bf16, max_steps=1)
        EstimatorTrainer(model, settings, train_dataset=examples("bert"), estimator=estimator).train()
        assert {param.dtype for param in model.parameters()} == {torch.float32}
        seen.append(estimator.last.directional_derivatives)
    exact, rounded = seen
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_a_resumed_run_ends_as_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    def run(**kwargs: Any) -> nn.Module:
        model = make("bert")
        settings = arguments(
            tmp_path, optim="adamw_torch", save_strategy="steps", save_steps=2, gradient_accumulation_steps=2
        )
        EstimatorTrainer(model, settings, train_dataset=examples("bert", 64), estimator=forward()).train(**kwargs)
        return model

    whole = run()
    resumed = run(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4
    assert torch.equal(flat(resumed), flat(whole))


@pytest.mark.parametrize("engine", ["func", "dual"])
def test_lora_gives_directions_to_the_adapters_alone(engine: str, tmp_path: Path) -> None:
    model = get_peft_model(make("gpt2"), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    frozen = {name: param.clone() for name, param in model.named_parameters() if not param.requires_grad}
    adapters = {name: param.clone() for name, param in model.named_parameters() if param.requires_grad}
    drawn: set[str] = set()

    def direction(params: Any, generator: Any) -> Any:
        drawn.update(params)
        return {name: generator.normal(name, param) for name, param in params.items()}

    estimator = fwdgrad.ForwardGradient(direction, 2, engine)
    EstimatorTrainer(model, arguments(tmp_path), train_dataset=examples("gpt2"), estimator=estimator).train()
    assert drawn == set(adapters) and all("lora" in name for name in drawn)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) and after[name].grad is None for name, value in frozen.items())
    # B starts at zero, so that A has no gradient in the first step and moves from the second on.
    assert all(not torch.equal(after[name], value) for name, value in adapters.items())


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("engine", ["func", "dual"])
def test_accelerate_in_a_plain_loop(engine: str, precision: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # one setting for a process, but for this
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    model = make("bert")
    before = flat(model)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    estimator = forward(engine)
    inputs = batch("bert")
    nodes = torch._C._autograd._get_sequence_nr()
    for step in range(4):
        with accelerator.accumulate(model):
            estimator(model, lambda model: model(**inputs).loss / accelerator.gradient_accumulation_steps)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
            optimizer.zero_grad()
        assert torch.equal(flat(model), before) == (step == 0)
    assert torch._C._autograd._get_sequence_nr() == nodes
    assert (flat(model) - before).norm() <= 2 * 0.1 * 0.01 * 1.001


def test_two_processes_stay_equal_by_exchanging_directional_derivatives_alone(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).parent / "replicas_transformers.py"), str(tmp_path)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        ranks.append(subprocess.Popen(command, env=os.environ | place, **pipes))
    for rank, process in enumerate(ranks):
        out, error = process.communicate(timeout=240)
        assert process.returncode == 0, error
        assert f"rank {rank}: equal True, trained True, derivatives exchanged 20 times" in out, out


def test_refusals(tmp_path: Path) -> None:
    model = make("bert")
    factored = forward(optimizer=FactoredSGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="leave out optimizer="):
        EstimatorTrainer(model, arguments(tmp_path), train_dataset=examples("bert"), estimator=factored)
    plain: dict[str, Any] = {"mixed_precision": "no", "distributed_type": "NO"}
    for changes, num_gpus, text in (
        ({"mixed_precision": "fp16"}, 1, "use bf16=True"),
        ({"distributed_type": "FSDP"}, 1, "FSDP shards what an estimator needs whole"),
        ({}, 2, "start one process per GPU with torchrun"),
    ):
        accelerator: Any = SimpleNamespace(**plain | changes)
        with pytest.raises(ValueError, match=text):
            check_supported(accelerator, num_gpus, forward())
