"""``check_model``: everything that can be told about a model and a closure before they are trained."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fwdgrad.estimators import Estimator
from fwdgrad.fit import METHODS
from fwdgrad.functional import Closure, FunctionalModel, check_trainable
from fwdgrad.model_check import findings, parameters, state
from fwdgrad.model_check.compare import Comparison, compare
from fwdgrad.model_check.double import Double, double_copy
from fwdgrad.model_check.findings import first_line
from fwdgrad.model_check.methods import try_methods
from fwdgrad.model_check.modules import Calls, compare_module, innermost, leaves_of
from fwdgrad.model_check.operations import Audit, move
from fwdgrad.model_check.places import CLOSURE, Places
from fwdgrad.model_check.report import Finding, Report
from fwdgrad.randomness import global_random_state

DISTANCE = 1e-2
"""How far from the model's weights derivatives are taken, relative to their root mean square: layers that begin at zero
take part there, and values that begin equal are apart."""
EXPLICIT = ("Tensor.detach", "Tensor.detach_", "torch.no_grad")


def check_model(
    model: nn.Module,
    closure: Closure,
    *,
    methods: Mapping[str, Callable[[], Estimator]] | None = None,
    prepare: Mapping[str, Callable[[nn.Module], nn.Module]] | None = None,
    parts: bool = True,
    seed: int = 0,
) -> Report:
    """Compare the derivatives of a model by every engine, and look for what would keep it from being trained.

    On a float64 copy, a little away from its weights, the directional derivative of the loss is computed by the dual
    engine, by ``torch.func.jvp``, in reverse mode and by central differences of several step sizes; so are those of
    every distinct operation and every kind of leaf module, on the inputs that they get in the closure. Besides: whether
    the closure repeats itself, hidden state, cut derivatives, parameters without influence, layers that mix examples,
    and which methods make a step. The model, its buffers, its gradients and the global random states are left as they
    are. Reverse mode is used to compare with.

    Args:
        model: the module to train, in the mode (training or evaluation) in which it will be trained.
        closure: called with the model, returns a scalar loss or per-example losses (B,).
        methods: the methods to try, from a word to what makes the estimator; all of ``fwdgrad.fit`` by default, none
            if empty.
        prepare: what turns a copy of the model into one that a method trains, by the word of the method.
        parts: compare operations and leaf modules, besides the whole; those with more than ``operations.LARGEST``
            values are compared within the whole alone.
        seed: seed of the directions.

    Raises:
        TypeError: if the model is no module, the closure not callable, or what it returns no loss.
        ValueError: if nothing is trainable, a lazy parameter has no shape yet, or the model cannot be copied.
        Exception: whatever the closure raises on an ordinary forward pass.
    """
    check_trainable(model)
    if not callable(closure):
        raise TypeError(
            f"closure must be callable, as in lambda model: loss(model(x), y), got {type(closure).__name__}"
        )
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"parameter {name!r} has no shape yet; run one forward pass before the check")
    started = time.perf_counter()
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    report = Report(type(model).__name__, count, math.nan)
    with state.untouched_randomness(model):
        report.findings += parameters.declared(model)
        with _float64():
            _Check(double_copy(model), closure, report, seed).run(parts)
        wrong = {
            way for way in ("func", "dual") if any(f.kind == findings.KINDS[f"{way} wrong"][1] for f in report.problems)
        }
        report.methods += try_methods(model, closure, METHODS if methods is None else methods, prepare or {}, wrong)
    report.findings += _batch_norm(model)
    report.seconds = time.perf_counter() - started
    return report


class _Check:
    """One check: a float64 copy of the model and what has been found so far."""

    def __init__(self, model: nn.Module, closure: Closure, report: Report, seed: int) -> None:
        self.model, self.report, self.seed = model, report, seed
        self.places = Places(model)
        self.calls: Calls = {}
        self.function = FunctionalModel(model, closure)
        self.params = self.function.params
        self.raised: dict[int, str] = {}
        self.replay = global_random_state(self.params.values())

    def run(self, parts: bool) -> None:
        if not self._repeats_itself():
            return
        self._move_away()
        audit = self._audit(parts)
        whole = self._compare_whole()
        explained = self._compare_parts(audit) if parts else set()
        self._dead_parameters(audit)
        self._explain(whole, explained, audit)

    def evaluate(self, *values: Tensor) -> tuple[Tensor]:
        """Return the loss as a function of the trainable parameters."""
        with self.places.followed(), Double():
            try:
                return (self.function(dict(zip(self.params, values, strict=True)))[0],)
            except Exception as error:
                self.raised[id(error)] = self.places.here()
                raise

    def _repeats_itself(self) -> bool:
        """Run twice from the same random state; say what differs, and what the first run has left in the model."""
        outside = state.other_randomness()
        losses, runs, snapshots = [], [state.Run(), state.Run()], [state.snapshot(self.model)]
        for seen in runs:
            self.replay()
            with self.places.followed(seen.calls, seen.outputs), Double(), torch.no_grad():
                losses.append(self.function(self.params)[0])
            snapshots.append(state.snapshot(self.model))
        drew = outside != state.other_randomness()
        hidden = state.changed(snapshots[1], snapshots[2])
        kept = [name for name in state.changed(snapshots[0], snapshots[1]) if name not in hidden]
        self.report.loss = losses[0].mean().item()
        same = losses[0].shape == losses[1].shape and torch.allclose(
            losses[0], losses[1], rtol=1e-9, atol=1e-12, equal_nan=True
        )
        if not same:
            self._not_repeated(runs, hidden, drew, losses)
        elif hidden:
            text = "a forward pass changes attributes that are not buffers; they are not restored between evaluations"
            remedy = "register them as buffers, or keep x.detach() of what is needed"
            self._find("warning", "hidden state", "", hidden, text, remedy)
        if kept:
            text = "the first forward pass sets attributes that the next leaves as they are"
            self._find("note", "kept from the first pass", "", kept, text, "nothing, if no parameter has part in them")
        if same and not math.isfinite(self.report.loss):
            text = f"the loss is {self.report.loss}"
            self._find("problem", "loss not finite", "", [], text, "look at the inputs, targets and initial weights")
        return same and math.isfinite(self.report.loss)

    def _not_repeated(self, runs: list[state.Run], hidden: list[str], drew: bool, losses: list[Tensor]) -> None:
        places = [self.places.name(module) for module in state.differing(*runs)][:1] or [CLOSURE]
        because = "it draws from the global generator of Python or NumPy, " if drew else ""
        because += f"a forward pass changes {', '.join(hidden[:3])}, " if hidden else ""
        text = (
            f"{because}so that two evaluations from the same torch random state give {losses[0].mean().item():.9g} and "
            f"{losses[1].mean().item():.9g}; derivatives were not compared"
        )
        remedy = "draw with torch's global generator; take the batch out of the closure; register state as buffers"
        self._find("problem", "not deterministic", "", places, text, remedy)

    def _move_away(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        original = dict(self.params)
        for name, value in original.items():
            self.params[name] = move(value, generator, DISTANCE)
        self.replay()
        with torch.no_grad():
            losses = self.evaluate(*self.params.values())[0]
        if not losses.isfinite().all():
            self.params.update(original)

    def _audit(self, compared: bool) -> Audit:
        """Run once with reverse mode's graph, and look at every operation on the way."""
        audit = Audit(self.places, compared)
        leaves = {name: value.clone().requires_grad_() for name, value in self.params.items()}
        self.replay()
        with self.places.followed(self.calls), audit:
            try:
                self.function(leaves)
            except Exception as error:
                text = f"with gradients enabled the forward pass fails: {first_line(error)}"
                self._find("problem", "fails with gradients", "", [self.places.here()], text)
        for finding in (
            finding for operation in audit.operations.values() for finding in findings.of_operation(operation)
        ):
            self._merge(finding)
        self.report.operations = sum(op.comparison is not None for op in audit.operations.values())
        return audit

    def _compare_whole(self) -> Comparison:
        self.replay()
        comparison = compare(self.evaluate, list(self.params.values()), self.seed)
        self.report.derivatives = comparison.projections
        return comparison

    def _compare_parts(self, audit: Audit) -> set[str]:
        """Compare the leaf modules; report what no operation of theirs explains."""
        explained = {word for operation in audit.operations.values() for word in operation.verdicts}
        for module in leaves_of(self.calls):
            comparison, verdicts = compare_module(module, self.calls[module])
            self.report.modules += comparison is not None
            for word in verdicts:
                if word not in explained and word != "cut" and comparison is not None:
                    name = self.places.name(module)
                    self._merge(findings.make(word, type(module).__name__, [name], comparison))
                    explained.add(word)
        return explained

    def _dead_parameters(self, audit: Audit) -> None:
        """Report parameters whose gradient is zero: without influence on the loss, or cut off from it."""

        def loss(params: dict[str, Tensor]) -> Tensor:
            self.replay()
            return self.evaluate(*params.values())[0].mean()

        idle, cut = parameters.without_gradient(loss, self.params, self.seed)
        if len(idle) == len(self.params):
            text = "the loss depends on no trainable parameter"
            self._find("problem", "nothing to train", "", [], text, "use the module that the closure is called with")
        elif idle:
            text = (
                "this loss does not depend on them: unused, dropped, or behind units that are off; their share is noise"
            )
            remedy = "freeze or remove those that are never used"
            self._find("warning", "parameters without influence", "", idle, text, remedy)
        if cut:
            more = f" and {len(cut) - 3} more" if len(cut) > 3 else ""
            self._cut(audit, f"the loss depends on {', '.join(cut[:3])}{more}, but no derivative reaches them")

    def _explain(self, whole: Comparison, explained: set[str], audit: Audit) -> None:
        """Report what the whole shows and no part of it has explained, and where it comes from."""
        for word in whole.verdicts():
            if word == "cut":
                self._cut(audit, findings.make("cut", "", [], whole).text)
            elif word not in explained:
                found = innermost(self.model.modules(), self.calls, word) if "refuses" not in word else {}
                for module, comparison in found.items():
                    self._merge(findings.make(word, type(module).__name__, [self.places.name(module)], comparison))
                if not found:
                    error = whole.errors.get(word.split()[0])
                    place = self.raised.get(id(error), "the whole")
                    self._merge(findings.make(word, "", [place], whole))

    def _cut(self, audit: Audit, text: str) -> None:
        """Report a derivative that ends although the loss goes on to depend on the value, once."""
        if any(finding.kind == "derivative cut" for finding in self.report.findings):
            return
        by_name = {self.places.name(module): module for module in self.model.modules()}
        inner = {by_name[name] for _, name in audit.cuts if name in by_name}
        candidates = [m for m in self.model.modules() if not audit.cuts or inner & set(m.modules())]
        found = [self.places.name(module) for module in innermost(candidates, self.calls, "cut")]
        by_definition = {
            place for op in audit.operations.values() if "cut" in op.verdicts for place in op.places
        }  # an operation of PyTorch that cuts, cuts by definition: said already
        places = [name for name in found if name not in by_definition]
        if not places and by_definition:
            return
        places = places or [name for _, name in audit.cuts if name == CLOSURE][:1] or ["the whole"]
        named = {how for how, name in audit.cuts if name in places} or {how for how, _ in audit.cuts}
        level = "warning" if named and named <= set(EXPLICIT) else "problem"
        remedy = findings.KINDS["cut"][2] if level == "problem" else "nothing if it is meant, as in a target network"
        self._find(level, "derivative cut", ", ".join(sorted(named)), places, text, remedy)

    def _find(self, level: str, kind: str, subject: str, places: list[str], text: str, remedy: str = "") -> None:
        self.report.findings.append(Finding(level, kind, subject, tuple(places), text, remedy))

    def _merge(self, finding: Finding) -> None:
        """Add a finding, or its places to the same finding about other shapes."""
        held = self.report.findings
        for i, other in enumerate(held):
            if (other.kind, other.subject) == (finding.kind, finding.subject):
                places = tuple(dict.fromkeys((*other.places, *finding.places)))
                held[i] = Finding(other.level, other.kind, other.subject, places, other.text, other.remedy)
                return
        held.append(finding)


def _batch_norm(model: nn.Module) -> list[Finding]:
    kind = nn.modules.batchnorm._BatchNorm
    places = [name for name, layer in model.named_modules() if isinstance(layer, kind) and layer.training]
    if not places:
        return []
    text = "in training mode each example's loss depends on the others: per-example directions and activity refuse it"
    remedy = "GroupNorm or LayerNorm for those methods; all others train it as it is"
    return [Finding("note", "BatchNorm in training", "", tuple(places), text, remedy)]


@contextmanager
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(before)
