"""The doctor names each ailment of a model, and finds nothing in a healthy one."""

from __future__ import annotations

import copy
import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command import Outcome, close_logs, read_json
from doctor_patients import AILMENTS, HEALTHY, X, Y, applies, classify
from torch import nn

import fwdgrad
from fwdgrad import check_model, cli_doctor
from fwdgrad.dual import dual, tangent
from fwdgrad.dual.tensor import RULES
from fwdgrad.fit import METHODS


@pytest.mark.parametrize("name", AILMENTS)
def test_an_ailment_is_named_once_with_its_place(name: str) -> None:
    make, level, kind, subject, place, text = AILMENTS[name]
    report = check_model(*make(), methods={})
    found = [finding for finding in report.findings if finding.kind == kind]
    assert [(finding.level, finding.subject) for finding in found] == [(level, subject)], str(report)
    assert place in (*found[0].places, "") and text in str(found[0]), str(report)
    assert report.ok == (level != "problem")


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_has_no_findings(name: str) -> None:
    report = check_model(*HEALTHY[name](), methods={})
    assert report.ok and not report.findings, str(report)
    assert set(report.derivatives) == {"reverse", "dual", "func", "differences"}
    assert report.operations > 0


@pytest.mark.parametrize("function", [torch.Tensor.new_empty, torch.empty_like])
def test_what_memory_held_before_is_no_finding(monkeypatch: pytest.MonkeyPatch, function: object) -> None:
    served = []

    def other_memory(like: torch.Tensor, *size: int) -> torch.Tensor:
        served.append(size)
        return torch.full(size or like.shape, 7.0, dtype=like.dtype)

    monkeypatch.setitem(RULES, function, other_memory)
    report = check_model(
        *applies(lambda x: x * function(x, *([] if function is torch.empty_like else x.shape)).fill_(2.0))
    )
    assert served and report.ok, str(report)


@pytest.mark.parametrize("error", [1e-3, -1e-3])
@pytest.mark.parametrize("function", [torch.tanh, F.linear, torch.cumsum])
def test_a_rule_wrong_by_a_thousandth_is_named(monkeypatch: pytest.MonkeyPatch, function: object, error: float) -> None:
    right = RULES[function]

    def wrong(*args: object, **kwargs: object) -> object:
        out = right(*args, **kwargs)
        t = tangent(out)
        return out if t is None else dual(out.detach().clone(), t * (1 + error))

    monkeypatch.setitem(RULES, function, wrong)
    report = check_model(*applies(lambda x: torch.cumsum(torch.tanh(x), 1)), methods={})
    found = [finding.subject.rpartition(".")[2] for finding in report.problems]
    assert found == [function.__name__], str(report)
    assert report.problems[0].kind == "wrong in engine=dual"
    (measured,) = re.findall(r"reverse mode by (\S+),", report.problems[0].text)
    assert 1e-5 < float(measured) < 1e-2


def test_a_rule_with_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    right = RULES[torch.tanh]

    def wrong(x: torch.Tensor) -> object:
        out = right(x)
        t = tangent(out)
        return dual(torch.tanh(x) + 1e-3, t)

    monkeypatch.setitem(RULES, torch.tanh, wrong)
    (problem,) = check_model(*applies(torch.tanh), methods={}).problems
    assert problem.subject == "torch.tanh" and problem.text.startswith("its value differs")


def test_a_wrong_derivative_that_no_operation_shows_is_found_in_its_module() -> None:
    """A custom function with a wrong backward: the dual engine has a right rule for it."""

    class Cube(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, g):
            return 3.003 * ctx.saved_tensors[0] ** 2 * g

        @staticmethod
        def jvp(ctx, t):
            return 3 * ctx.saved_tensors[0] ** 2 * t

    @fwdgrad.dual.rule(Cube)
    def cube(x):
        t = tangent(x)
        return dual(x**3, None if t is None else 3 * x**2 * t)

    class Cubed(nn.Module):
        def forward(self, x):
            return Cube.apply(x)

    report = check_model(*classify(nn.Sequential(nn.Linear(4, 3), Cubed())), methods={})
    (finding,) = report.findings
    assert (finding.level, finding.kind, finding.places) == ("warning", "reverse mode differs", ("1",)), str(report)


def test_the_model_its_buffers_gradients_and_the_random_states_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    model[0].weight.grad = torch.ones(5, 4)
    before, keys = copy.deepcopy(model.state_dict()), [set(vars(layer)) for layer in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    check_model(model, lambda m: F.cross_entropy(m(X), Y))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(model[0].weight.grad, torch.ones(5, 4)) and model[3].weight.grad is None
    assert [set(vars(layer)) for layer in model.modules()] == keys and not model[0]._forward_hooks
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert torch.get_default_dtype() == torch.float32 and model[0].weight.dtype == torch.float32


def test_every_shipped_method_gets_a_line() -> None:
    model, closure = classify(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    report = check_model(model, closure, prepare={"local": lambda model: fwdgrad.local_blocks(model, X)})
    assert {line.method: line.works for line in report.methods} == dict.fromkeys(METHODS, True)
    lines = {line.method: line.reason for line in check_model(model, closure, parts=False).methods}
    assert lines.pop("local").startswith("local losses need a model in blocks") and not any(lines.values())


def test_a_method_that_cannot_says_why_and_what_can() -> None:
    model, _ = AILMENTS["refused by PyTorch"][0]()
    tokens = torch.randint(7, (6, 3))
    report = check_model(model, lambda m: F.cross_entropy(m(tokens), Y))
    lines = {line.method: line for line in report.methods}
    assert lines["fwdgrad_fast"].works and lines["backprop"].works
    assert "engine=dual works" in lines["fwdgrad"].reason and not lines["fwdgrad"].works
    assert "reduction='none'" in lines["activity"].reason
    wrong = check_model(*AILMENTS["wrong in PyTorch"][0]())
    lines = {line.method: line.reason for line in wrong.methods}
    assert lines["fwdgrad"] == "engine=func gives a wrong derivative of this model; engine=dual works"


def test_a_method_on_batch_norm_is_refused_where_examples_must_be_independent() -> None:
    report = check_model(*AILMENTS["batch norm"][0]())
    lines = {line.method: line for line in report.methods}
    assert "GroupNorm" in lines["activity"].reason and lines["fwdgrad_fast"].works


def test_bad_input_is_refused_in_words() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got int"):
        check_model(3, lambda m: m)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"closure must be callable, as in lambda model: .*, got Tensor"):
        check_model(nn.Linear(4, 3), X)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no parameter with requires_grad=True"):
        check_model(nn.ReLU(), lambda m: m(X).sum())
    with pytest.raises(ValueError, match="'weight' has no shape yet; run one forward pass"):
        check_model(nn.LazyLinear(3), lambda m: m(X).sum())
    with pytest.raises(ValueError, match="scalar loss or a vector of per-example losses, got a tensor of shape"):
        check_model(nn.Linear(4, 3), lambda m: m(X))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        check_model(nn.Linear(5, 3), lambda m: m(X).sum())
    model = nn.Linear(4, 3)
    model.generator = iter([1])  # type: ignore[assignment]
    model.held = torch.ones(2, requires_grad=True) * 2
    with pytest.raises(ValueError, match=r"Linear cannot be copied by copy.deepcopy"):
        check_model(model, lambda m: m(X).sum())


def test_a_report_is_text_and_plain_values() -> None:
    report = check_model(*AILMENTS["cut by item"][0]())
    text, values = str(report), json.loads(json.dumps(report.to_dict()))
    assert text.splitlines()[0].startswith("Sequential: 44 trainable values, loss ")
    assert "1 problems, 0 warnings, 0 notes" in text and text.endswith("NOT healthy: see the problems above")
    assert values["ok"] is False and values["findings"][0]["kind"] == "derivative cut"
    assert values["methods"][0]["method"] in text


def run_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> Outcome:
    monkeypatch.setattr(sys, "argv", ["doctor", *arguments])
    capsys.readouterr()
    code = 0
    try:
        cli_doctor.doctor()
    except SystemExit as end:
        code = end.code
    finally:
        close_logs()
    return Outcome(code, *capsys.readouterr())


def test_the_command_checks_a_model_and_writes_the_report(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run_doctor(monkeypatch, capsys, "model=mlp_small", "json=report.json")
    assert outcome.code == 0 and outcome.out.rstrip().endswith("\nhealthy"), outcome.err
    words = [path.stem for path in (Path(__file__).parent.parent / "configs" / "optimization").glob("*.yaml")]
    lines = read_json(tmp_path / "report.json")["methods"]
    assert {line["method"]: line["works"] for line in lines} == dict.fromkeys(words, True)
    assert all(word in outcome.out for word in words)


def test_the_command_ends_with_1_on_a_problem_and_with_2_on_a_wrong_word(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["model._target_=doctor_patients.detached_logistic", "parts=false"]
    outcome = run_doctor(monkeypatch, capsys, *arguments)
    assert outcome.code == 1 and "derivative cut: Tensor.item" in outcome.out, outcome.err
    (report,) = tmp_path.glob("outputs/doctor/*/*/report.json")
    assert read_json(report)["ok"] is False
    outcome = run_doctor(monkeypatch, capsys, "model=lgistic")
    assert outcome.code == 2 and "did you mean logistic?" in outcome.error_line()
    outcome = run_doctor(monkeypatch, capsys, "model._target_=doctor_patients.nowhere")
    assert outcome.code == 2 and outcome.error_line().startswith("model: ")
