"""PyTorch's own sample inputs: each differentiable entry is right, by a rule, by the fallback, or refused.

The database is imported in the tests, not at collection: it takes seconds, and only one process runs them.
"""

import re
import warnings
from typing import Any

import pytest
import torch

CHUNKS = 12
SLOW_CHUNKS = 48

REFUSED = {
    "to_sparse": "sparse results carry no tangents",
    "native_dropout_backward": "a backward pass, which PyTorch's forward mode does not know either",
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu": "a kernel; scaled_dot_product_attention has a rule",
    "as_strided.partial_views": "memory outside of the tensor, where there are no tangents",
}
FALLBACK = {
    "istft": "for derivatives by the window",
    "slice": "called as aten.slice; indexing has rules",
    "_softmax_backward_data": "called as aten functions",
    "torch.ops.aten._safe_softmax.default": "called as an aten function",
    "max_pool2d_with_indices_backward": "called as an aten function",
    "_upsample_bilinear2d_aa": "called as an aten function; F.interpolate has rules",
    "native_group_norm": "the native functions; those of nn.functional have rules",
    "native_batch_norm": "likewise",
    "_native_batch_norm_legit": "likewise",
    "_batch_norm_with_update": "likewise",
}
UNTESTED = {"sparse.mm.reduce", "sparse.sampled_addmm", "normal.number_mean"}  # no sample, or none in two


@pytest.fixture(scope="module")
def harness() -> Any:
    pytest.importorskip("expecttest", reason="the operator database of PyTorch needs it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import op_db
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield op_db
    torch.set_num_threads(threads)


@pytest.fixture
def altered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Multiply the tangents that a rule returns, for one test."""
    from fwdgrad.dual.tensor import RULES, tangent

    def alter(function: Any, change: Any) -> None:
        right = RULES[function]

        def wrong(*args: Any, **kwargs: Any) -> Any:
            out = right(*args, **kwargs)
            t = tangent(out)
            if t is not None:
                out._tangent = change(t)
            return out

        monkeypatch.setitem(RULES, function, wrong)

    return alter


def _entry(harness: Any, name: str) -> Any:
    from op_samples import entries

    return next(op for op in entries() if harness.name_of(op) == name)


def _examine_chunk(harness: Any, chunk: int, chunks: int, **options: Any) -> None:
    from op_samples import entries

    problems = []
    for op in entries()[chunk::chunks]:
        report = harness.examine(op, **options)
        allowed = {"rule"}
        allowed |= {"refused", "fallback"} if report.name in REFUSED else set()
        allowed |= {"fallback"} if report.name in FALLBACK else set()
        allowed |= {"untested"} if report.name in UNTESTED else set()
        if not torch.__version__.startswith("2.15"):
            allowed |= {"refused", "fallback", "untested"}  # other names, other samples
        if report.status not in allowed:
            problems.append(f"{report.name}: {report.status} {sorted(report.fallbacks)} {report.notes}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_each_entry_on_a_sample_of_each_dtype(harness: Any, chunk: int) -> None:
    _examine_chunk(harness, chunk, CHUNKS, limit=2, variants=False)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(SLOW_CHUNKS))
def test_each_entry_on_all_samples(harness: Any, chunk: int) -> None:
    _examine_chunk(harness, chunk, SLOW_CHUNKS, limit=None)


@pytest.mark.parametrize(
    ("name", "function"),
    [("sin", torch.sin), ("cumsum", torch.cumsum), ("index_add", torch.index_add), ("cat", torch.cat)],
)
def test_a_rule_wrong_by_a_thousandth_fails(harness: Any, altered: Any, name: str, function: Any) -> None:
    assert harness.examine(_entry(harness, name)).status == "rule"
    altered(function, lambda t: t * 1.001)
    report = harness.examine(_entry(harness, name))
    assert report.status == "FAIL"
    assert re.search(r"<u, Jv> = .*reverse mode", report.notes[0])


@pytest.mark.parametrize("change", [lambda t: t.flip(0), lambda t: t[:1], lambda t: t.float(), lambda t: None])
def test_directions_mixed_dropped_or_of_another_dtype_fail(harness: Any, altered: Any, change: Any) -> None:
    altered(torch.sin, change)
    assert harness.examine(_entry(harness, "sin")).status == "FAIL"


def test_an_argument_left_out_fails(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fwdgrad.dual.tensor import RULES

    right = RULES[torch.atan2]
    monkeypatch.setitem(RULES, torch.atan2, lambda input, other: right(input, other.detach()))
    assert harness.examine(_entry(harness, "atan2")).status == "FAIL"


def test_an_autograd_node_fails(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fwdgrad.dual.tensor import RULES

    right = RULES[torch.sin]

    def recording(input: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            torch.ones(1, requires_grad=True).sum()
        return right(input)

    monkeypatch.setitem(RULES, torch.sin, recording)
    report = harness.examine(_entry(harness, "sin"))
    assert report.status == "FAIL" and "autograd node" in report.notes[0]


def test_what_has_no_rule_is_told_from_what_has(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fwdgrad.dual.fallback import make_fallback
    from fwdgrad.dual.tensor import RULES

    monkeypatch.setitem(RULES, torch.sin, make_fallback(torch.sin, "torch.sin"))
    report = harness.examine(_entry(harness, "sin"), variants=False)
    assert report.status == "fallback" and report.fallbacks == {"torch.sin"}


def test_the_wrong_formulas_of_torch_are_found(harness: Any) -> None:
    report = harness.examine(_entry(harness, "scatter_reduce.prod"), limit=None, variants=False, forward=True)
    assert report.status == "rule"
    assert report.forward == "wrong" or not torch.__version__.startswith("2.15")
