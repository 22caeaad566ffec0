"""What an operation does that meets a Variable: it is noted as a node, with its transpose from the table.

Views, in-place operations and those with ``out=`` are read off the schema of the operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.errors import DualError
from fwdgrad.dual.tape.graph import Node, Value
from fwdgrad.dual.tape.table import TRANSPOSES, aten
from fwdgrad.dual.tape.variable import RECORDERS, Variable, assign, shape_only, value_of, variable, view, zeros

_exclude: Any = torch._C._dispatch_tls_set_dispatch_key_excluded
_VERSIONED: Any = torch._C.DispatchKey.ADInplaceOrView
_LISTS = (list, tuple)


def resolve(op: Any) -> Callable[..., Any]:
    """Return, and remember, what an operation does when it meets a Variable."""
    RECORDERS[op] = recorder = _make_recorder(op)
    return recorder


def _make_recorder(op: Any) -> Callable[..., Any]:
    entry = TRANSPOSES.get(op) or TRANSPOSES.get(op.overloadpacket)
    written = [i for i, a in enumerate(op._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    if written:
        return _writing(op, written)
    if entry is None:
        return _refusing(op)
    viewing = any(r.alias_info is not None for r in op._schema.returns)
    return _viewing(op, *entry) if viewing else _recording(op, *entry)


def name_of(op: Any) -> str:
    """Return the name of a basic operation for messages."""
    return f"torch.ops.{op}"


def _refusing(op: Any) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise DualError(
            f"{name_of(op)}: has no transpose, so that a tangent in reverse mode cannot pass it; if it is linear in "
            "the tangent, enter one with fwdgrad.dual.transpose; if not, the rule that uses it is not linear"
        )

    return refuse


def _recording(op: Any, pulls: Any, terms: Any, shape: Any) -> Callable[..., Any]:
    name = name_of(op)

    def record(*args: Any, **kwargs: Any) -> Any:
        values, places, saved, tensors = _arguments(name, args, pulls, terms, kwargs)
        device = values[0].device
        sizes = None if shape is None else shape(*args, **kwargs)
        if sizes is None:
            out = _shapes_of(op, args, kwargs)
        else:
            dtype = values[0].dtype
            out = [Shape(n, dtype) for n in sizes] if type(sizes) is list else Shape(sizes, dtype)
        if all(v.is_zero for v in values):
            if not isinstance(out, tuple | list):
                return zeros(out.shape, out.dtype, device)
            return tuple([None if o is None else zeros(o.shape, o.dtype, device) for o in out])
        node = Node(name, values, _puller(pulls, places, args), (saved, kwargs), tensors)
        if not isinstance(out, tuple | list):
            return variable(node.output(out.shape, out.dtype, device))
        node.several = True
        return tuple([None if o is None else variable(node.output(o.shape, o.dtype, device)) for o in out])

    return record


def _viewing(op: Any, pulls: Any, terms: Any, shape: Any) -> Callable[..., Any]:
    name = name_of(op)

    def record(x: Variable, *args: Any, **kwargs: Any) -> Any:
        value = value_of(x)
        out = op(shape_only(x), *args, **kwargs)
        if op is aten._conj.default or op is aten._neg_view.default:
            out = op(out)  # a Variable is never marked as conjugate or negative
        node = Node(name, (value,), _puller(pulls, (0,), (x,)), ((value, *args), kwargs), ())
        if isinstance(out, Tensor):
            made = node.output(out.shape, out.dtype, x.device)
            return view(x, made, out, lambda base: op(base, *args, **kwargs))
        node.several = True

        def piece(i: int, o: Tensor) -> Variable:
            made = node.output(o.shape, o.dtype, x.device)
            return view(x, made, o, lambda base: op(base, *args, **kwargs)[i])

        return type(out)([piece(i, o) for i, o in enumerate(out)])

    return record


def _puller(pulls: Any, places: Sequence[int], args: Sequence[Any]) -> Callable[..., Sequence[Tensor | None]]:
    if len(places) == 1 and not isinstance(args[places[0]], list | tuple):
        pull = pulls[places[0]]
        return lambda u, saved, kwargs: (pull(u, *saved, **kwargs),)

    def several(u: Any, saved: Any, kwargs: Any) -> Sequence[Tensor | None]:
        out: list[Tensor | None] = []
        for place in places:
            pulled = pulls[place](u, *saved, **kwargs)
            if isinstance(saved[place], list | tuple):
                out += [p for p, a in zip(pulled, saved[place], strict=True) if type(a) is Value]
            else:
                out.append(pulled)
        return out

    return several


def _arguments(
    name: str, args: tuple[Any, ...], pulls: Any, terms: Any, kwargs: dict[str, Any]
) -> tuple[list[Value], list[int], tuple[Any, ...], list[Tensor]]:
    """Return the values among the arguments, where they stand, all arguments with these in place, and the tensors."""
    places = [i for i, a in enumerate(args) if _has_variable(a)]
    for i in places:
        if i >= len(pulls) or pulls[i] is None:
            raise DualError(
                f"{name}: has no transpose by the argument that is a tangent here; see fwdgrad.dual.transpose"
            )
    if kwargs and any(_has_variable(a) for a in kwargs.values()):
        raise DualError(f"{name}: has no transpose by an argument given by name; see fwdgrad.dual.transpose")
    if len(terms) > 1 or len(places) > 1:
        _check_linear(name, args, terms, places)
    saved = list(args)
    values: list[Value] = []
    tensors: list[Tensor] = []
    alone = [term[0] for term in terms if len(term) == 1]
    for i, a in enumerate(args):
        if i in places:
            if isinstance(a, list | tuple):
                saved[i] = [_value_or_zero(name, x) for x in a]
                values += [v for v, x in zip(saved[i], a, strict=True) if type(x) is Variable]
            else:
                saved[i] = value_of(a)
                values.append(saved[i])
        elif i in alone:
            saved[i] = _shape_of(a)
        elif isinstance(a, Tensor):
            saved[i] = _kept(a, tensors)
        elif isinstance(a, list | tuple):
            saved[i] = [_kept(x, tensors) if isinstance(x, Tensor) else x for x in a]
    return values, places, tuple(saved), tensors


def _check_linear(name: str, args: tuple[Any, ...], terms: Any, places: list[int]) -> None:
    for term in terms:
        inside = [i for i in term if i in places]
        if len(inside) > 1:
            raise DualError(f"{name}: a tangent is multiplied with a tangent, which is not linear")
        given = [args[i] for i in term if i < len(args)]
        if given and not inside and not any(_is_zero(a) for a in given):
            raise DualError(f"{name}: something that is not zero is added to a tangent, which is not linear")


def _has_variable(a: Any) -> bool:
    return type(a) is Variable or (type(a) in _LISTS and any(type(x) is Variable for x in a))


def _value_or_zero(name: str, x: Any) -> Any:
    if type(x) is Variable:
        return value_of(x)
    if isinstance(x, Tensor):
        if not _is_zero(x):
            raise DualError(f"{name}: something that is not zero is joined to a tangent, which is not linear")
        return _shape_of(x)
    return x


class Shape:
    """In the place of a result, or of an argument that is zero: its shape and dtype."""

    __slots__ = ("dtype", "shape")

    def __init__(self, shape: Any, dtype: torch.dtype) -> None:
        self.shape = torch.Size(shape)
        self.dtype = dtype

    def dim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)


def _shape_of(a: Any) -> Any:
    return Shape(a.shape, a.dtype) if isinstance(a, Tensor) else a


def _kept(x: Tensor, tensors: list[Tensor]) -> Tensor:
    """Return a tensor to be saved: an alias, so that a Dual's own tangent is not kept alive by it."""
    if type(x) is not Tensor:
        _exclude(_VERSIONED, False)  # below PyTorch's bookkeeping, where we are, an alias would not share the version
        x = x.detach()
        _exclude(_VERSIONED, True)
    tensors.append(x)
    return x


def _is_zero(a: Any) -> bool:
    if isinstance(a, Tensor):
        if a.numel() > 1 and not any(a.stride()):
            a = a[(0,) * a.dim()]
        return not bool(a.any())
    return a is None or (isinstance(a, int | float | complex) and a == 0)


def _shapes_of(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the result of an operation in shape and dtype: computed on the meta device, or of zeros."""
    kwargs = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    try:
        return op(*[_map(shape_only, a) for a in args], **{k: _map(shape_only, a) for k, a in kwargs.items()})
    except (NotImplementedError, RuntimeError):  # where the shape depends on an index or a mask
        return op(*[_map(_zeros_for, a) for a in args], **kwargs)


def _map(function: Any, a: Any) -> Any:
    if isinstance(a, Tensor):
        return function(a)
    return [function(x) if isinstance(x, Tensor) else x for x in a] if isinstance(a, list | tuple) else a


def _zeros_for(x: Any) -> Tensor:
    return value_of(x).zeros() if type(x) is Variable else x


def _writing(op: Any, written: list[int]) -> Callable[..., Any]:
    """Return what an in-place operation, or one with ``out=``, does: it is the operation out of place, and assigned."""
    name = name_of(op)
    schema = op._schema
    functional, keeps = _out_of_place(op, written)
    names = [schema.arguments[i].name for i in written]

    def record(*args: Any, **kwargs: Any) -> Any:
        targets = [args[i] if i < len(args) else kwargs[n] for i, n in zip(written, names, strict=True)]
        if not all(type(x) is Variable for x in targets):
            refuse_plain_target(name)
        given = args if keeps else [a for i, a in enumerate(args) if i not in written]
        out = functional(*given, **{k: v for k, v in kwargs.items() if k not in names})
        outs = [out] if isinstance(out, Tensor) else out
        for target, made in zip(targets, outs, strict=True):
            assign(target, value_in(target, made, name), name)
        return targets[0] if len(targets) == 1 else tuple(targets)

    return record


def refuse_plain_target(name: str) -> None:
    """Raise where a Variable would be written to memory, of which it has none."""
    raise DualError(
        f"{name}: a tangent in reverse mode is written into a plain tensor, which cannot record it; "
        "make that tensor of a tangent, t.new_zeros(...)"
    )


def value_in(target: Variable, made: Any, name: str) -> Value:
    """Return the value of a result as its target will hold it, in shape and dtype."""
    if type(made) is not Variable:
        if not _is_zero(made):
            raise DualError(f"{name}: something that is not zero is written to a tangent, which is not linear")
        return Value(target.shape, target.dtype, target.device, is_zero=True)
    value = value_of(made)
    if value.shape == target.shape and value.dtype is target.dtype:
        return value
    if value.is_zero:
        return Value(target.shape, target.dtype, target.device, is_zero=True)
    node = Node(name, (value,), lambda u: (u,), (), ())
    return node.output(target.shape, target.dtype, target.device)


def _out_of_place(op: Any, written: list[int]) -> tuple[Any, bool]:
    """Return the operation that computes what ``op`` writes, and whether it takes the written arguments too."""
    packet, schema = op.overloadpacket, op._schema
    short = schema.name.split("::")[1]
    if schema.arguments[written[0]].is_out:
        wanted = [a.name for i, a in enumerate(schema.arguments) if i not in written]
        for overload in packet.overloads():
            candidate = getattr(packet, overload)
            if [a.name for a in candidate._schema.arguments] == wanted:
                return candidate, False
    elif short.endswith("_") and hasattr(aten, short[:-1]):
        plain = getattr(aten, short[:-1])
        if schema.overload_name in plain.overloads() or (schema.overload_name == "" and "default" in plain.overloads()):
            return getattr(plain, schema.overload_name or "default"), True
    return _refusing(op), True
