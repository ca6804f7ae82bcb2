"""Sums in f32, whatever is summed: of a traced function, the same with other accumulators.

With activations in bf16, JAX sums in bf16 too: gradients of biases and scales are sums over all
examples, which stop growing at 256 times their addend where a device adds in the type it is given;
and what several devices each have a part of is added up in the type of the parts. No layer says in
which type its gradient is summed. So the sums of a whole program are changed, parts of the user's
own included, once it is traced and differentiated: their result is rounded once, and not at all
where it is one of the program, the gradient of a parameter. What the steps of a scan add up, such as
the gradient of parameters that all chunks of items share, is carried in f32.
"""

from collections.abc import Callable, Container, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import source_info_util
from jax.extend import core

MANY = 32  # addends from which on a sum is one: of fewer, rounding is but rounding
_NARROW = (jnp.bfloat16, jnp.float16)
_WIDE = jnp.dtype("float32")
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}
_CALLS |= {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
_PRODUCTS = ("dot_general", "conv_general_dilated")
_PASSING = ("convert_element_type", "transpose", "reshape", "squeeze", "add_any", "add", "copy", "mul")


def sums_in_f32(function: Callable) -> Callable:
    """`function` with its sums in f32; without bf16 in it, as it is.

    Args:
      function: differentiated already: what is left of custom rules are the functions alone.
    """

    def call(*arguments: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        if not _has_narrow(closed.jaxpr):
            return function(*arguments)
        results = _evaluate(closed, jax.tree.leaves(arguments), [True] * len(closed.jaxpr.outvars))
        typed = list(map(_as, results, closed.jaxpr.outvars))
        return jax.tree.unflatten(jax.tree.structure(shapes), typed)

    return call


def _is_narrow(variable: Any) -> bool:
    return getattr(variable.aval, "dtype", None) in _NARROW


def _as(value: Any, variable: Any) -> Any:
    """A value in the type that the program has for it; that of a result may be wider."""
    return jnp.asarray(value, variable.aval.dtype) if _is_narrow(variable) else value


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def _has_narrow(jaxpr: core.Jaxpr) -> bool:
    for equation in jaxpr.eqns:
        inner = filter(_is_jaxpr, jax.tree.leaves(equation.params, is_leaf=_is_jaxpr))
        if any(map(_is_narrow, equation.outvars)) or any(_has_narrow(getattr(one, "jaxpr", one)) for one in inner):
            return True
    return False


def _results(jaxpr: core.Jaxpr, wanted: Sequence[bool]) -> set[Any]:
    """The variables that become wanted outputs without more ado."""
    is_variable = lambda atom: not isinstance(atom, core.Literal)  # noqa: E731
    found = {atom for atom, is_wanted in zip(jaxpr.outvars, wanted, strict=True) if is_wanted and is_variable(atom)}
    for equation in reversed(jaxpr.eqns):
        if equation.primitive.name in _PASSING and equation.outvars[0] in found:
            found |= set(filter(is_variable, equation.invars))
    return found


def _evaluate(closed: core.ClosedJaxpr, arguments: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
    """What a jaxpr gives, its sums in f32; so are products that are `wanted` outputs."""
    jaxpr = closed.jaxpr
    results = _results(jaxpr, wanted)
    sums: set[int] = set()  # identities of variables that are one
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))
    read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]  # noqa: E731
    for equation in jaxpr.eqns:
        stack = source_info_util.current_name_stack() + equation.source_info.name_stack
        with source_info_util.user_context(equation.source_info.traceback, name_stack=stack), equation.ctx.manager:
            inputs = [read(atom) for atom in equation.invars]
            become = [variable in results for variable in equation.outvars]
            if not (any(become) and equation.primitive.name in _PASSING):
                inputs = list(map(_as, inputs, equation.invars))
            found = _bind(equation, inputs, become)
            if equation.primitive.name == "reduce_sum":
                sums.add(id(equation.outvars[0]))
            elif equation.primitive.name == "convert_element_type" and not become[0] and id(equation.invars[0]) in sums:
                found = [_rounded(inputs[0], equation.outvars[0].aval.dtype)]
        values |= dict(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bind(equation: core.JaxprEqn, inputs: list[Any], wanted: Sequence[bool]) -> Sequence[Any]:
    """What an equation gives."""
    name, params = equation.primitive.name, equation.params
    if name in _CALLS:
        return _evaluate(params[_CALLS[name]], inputs, wanted)
    if equation.outvars and _is_narrow(equation.outvars[0]):
        result: Any = equation.outvars[0].aval
        wide = None
        is_sum = max((jnp.size(one) for one in inputs), default=0) >= MANY * result.size
        if name == "reduce_sum" and (is_sum or wanted[0]):
            of_sum = {"out_dtype": _WIDE} if params.get("out_dtype") is not None else {}
            wide = equation.primitive.bind(inputs[0].astype(_WIDE), **params | of_sum)
        if name in _PRODUCTS and (is_sum or wanted[0]):
            wide = equation.primitive.bind(*inputs, **params | {"preferred_element_type": _WIDE})
        if name == "convert_element_type" and jnp.result_type(inputs[0]) == _WIDE:
            wide = inputs[0] if wanted[0] else None
        if wide is not None and wanted[0]:
            return [wide]
        if wide is not None:
            return [_rounded(wide, result.dtype)]
    if name in _PASSING and wanted[0] and any(jnp.result_type(one) == _WIDE for one in inputs):
        inputs = [jnp.asarray(one, _WIDE) for one in inputs]
    if name == "scan":
        inputs, params = _scan(inputs, params)
    if name in ("while", "cond"):
        change = lambda value: _rewritten(value) if isinstance(value, core.ClosedJaxpr) else value  # noqa: E731
        params = {key: jax.tree.map(change, value, is_leaf=_is_jaxpr) for key, value in params.items()}
    if name in ("checkpoint", "remat2", "remat"):
        params = params | {"jaxpr": _rewritten(core.ClosedJaxpr(params["jaxpr"], ()), wanted).jaxpr}
    results = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(params))
    return results if equation.primitive.multiple_results else [results]


def _rounded(wide: Any, dtype: Any) -> Any:
    """A sum in a narrower type, by an operation of its own: or XLA would round the addends instead."""
    if dtype not in _NARROW:
        return wide.astype(dtype)
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(wide, info.nexp, info.nmant).astype(dtype)


def _scan(inputs: list[Any], params: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The inputs and parameters of a scan that adds up in f32, within its steps and over them.

    What is added up over the steps is carried: the gradient of all that the steps share, parameters
    above all.
    """
    closed, first = params["jaxpr"], params["num_consts"]
    wide = [
        k < params["num_carry"]
        and _is_narrow(result)
        and _adds_to(closed.jaxpr, closed.jaxpr.invars[first + k], result)
        for k, result in enumerate(closed.jaxpr.outvars)
    ]
    carried = {first + k for k, is_wide in enumerate(wide) if is_wide}
    inputs = [jnp.asarray(one, _WIDE) if k in carried else one for k, one in enumerate(inputs)]
    return inputs, params | {"jaxpr": _rewritten(closed, wide, carried)}


def _adds_to(jaxpr: core.Jaxpr, carry: Any, result: Any) -> bool:
    """Whether a result of a scan's step is what it was given, plus something."""
    made = {equation.outvars[0]: equation for equation in jaxpr.eqns if equation.primitive.name in ("add", "add_any")}
    reached = [result]
    for atom in reached:
        if not isinstance(atom, core.Literal) and atom in made:
            reached += made[atom].invars
    return any(atom is carry for atom in reached[1:])


def _rewritten(closed: core.ClosedJaxpr, wanted: Sequence[bool] = (), wide: Container[int] = ()) -> core.ClosedJaxpr:
    """The same with its sums in f32.

    Args:
      wanted: which results to leave in f32 where they are a sum; () = none.
      wide: numbers of the arguments that come in f32, and of which the results that they are added to are wanted.
    """
    if not _has_narrow(closed.jaxpr):
        return closed
    shapes = [
        jax.ShapeDtypeStruct(one.aval.shape, _WIDE if k in wide else one.aval.dtype)
        for k, one in enumerate(closed.jaxpr.invars)
    ]
    kept = wanted or [False] * len(closed.jaxpr.outvars)

    def call(*arguments: Any) -> list[Any]:
        results = _evaluate(closed, arguments, kept)
        return [
            one if is_kept else _as(one, variable)
            for one, variable, is_kept in zip(results, closed.jaxpr.outvars, kept, strict=True)
        ]

    return jax.make_jaxpr(call)(*shapes)
