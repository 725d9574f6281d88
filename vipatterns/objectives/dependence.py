"""Which elements of which draw a value depends on, read off the program itself: nothing is computed, and no plate is trusted.

Of each variable in the jaxpr it is known from which sources it is computed, and along which pairs of axes (the source's, its own)
element i comes from element i alone. An operation without a rule here is taken to mix all elements, which is always safe: the
estimator that is built on it keeps a few terms too many and stays unbiased. The idea is provenance tracking: Wingate, Goodman,
Stuhlmueller and Siskind (2011), Nonstandard interpretations of probabilistic programs for efficient inference.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

Links = dict[str, frozenset[tuple[int, int]]]
"""Source -> pairs (axis of the source, axis of the value) along which each element depends on its own alone."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ELEMENTWISE = _names("""
    abs add add_any and atan2 bessel_i0e bessel_i1e cbrt ceil clamp convert_element_type copy cos cosh digamma div eq erf erf_inv
    erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg
    nextafter not or polygamma pow real regularized_incomplete_beta rem round rsqrt select_n sign sin sinh sqrt square stop_gradient
    sub tan tanh xor
""")
REDUCTIONS = _names("argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_xor")
CALLS = _names("checkpoint closed_call core_call custom_jvp_call custom_vjp_call jit pjit remat2")


def dependence(function: Callable, sources: dict[str, jax.Array]) -> dict[str, Links]:
    """How each output of `function` depends on each source.

    Args:
        function: sources -> name -> array.
        sources: name -> array; only shapes and types matter.

    Returns:
        Name of an output -> its links; sources that it does not depend on are left out.
    """
    closed, outputs = jax.make_jaxpr(function, return_shape=True)(sources)
    links = [{name: frozenset((i, i) for i in range(jnp.ndim(sources[name])))} for name in sorted(sources)]  # as JAX flattens a dict
    return dict(zip(sorted(outputs), _walk(closed.jaxpr, links), strict=True))


def downstream(costs: dict[str, Links], scores: dict[str, Links]) -> dict[str, dict[str, frozenset]]:
    """The draws that a cost depends on, also by way of later draws.

    Args:
        costs: cost -> its links with the draws that it is computed from.
        scores: draw -> the links of its log density with the draws, in the order of drawing; its own among them.

    Returns:
        Draw -> cost -> pairs of axes. A cost that is no function of the draw, however it came about, is left out.
    """
    reached: dict[str, Links] = {}
    for name, links in scores.items():
        reached[name] = _through({k: v for k, v in links.items() if k != name}, reached)
    found: dict[str, dict[str, frozenset]] = {name: {} for name in scores}
    for cost, links in costs.items():
        for source, pairs in _through(links, reached).items():
            found[source][cost] = pairs
    return found


def _through(links: Links, reached: dict[str, Links]) -> Links:
    """Links, and those of the sources' own sources."""
    chained = [
        {s: frozenset((i, k) for i, j in up for m, k in pairs if j == m) for s, up in reached[t].items()} for t, pairs in links.items()
    ]
    return _join([links, *chained])


def _join(several: list[Links]) -> Links:
    """Of a value that is computed from several others, aligned with each."""
    joined: Links = {}
    for links in several:
        for source, pairs in links.items():
            joined[source] = joined[source] & pairs if source in joined else pairs
    return joined


def _moved(links: Links, to: dict[int, int]) -> Links:
    """Links of a value whose axis k became axis to[k], or was lost."""
    return {source: frozenset((i, to[k]) for i, k in pairs if k in to) for source, pairs in links.items()}


def _walk(jaxpr, inputs: list[Links]) -> list[Links]:
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(variable) -> Links:
        return {} if isinstance(variable, Literal) else known.get(variable, {})

    for eqn in jaxpr.eqns:
        known.update(zip(eqn.outvars, _outputs(eqn, [of(v) for v in eqn.invars]), strict=True))
    return [of(v) for v in jaxpr.outvars]


def _outputs(eqn, links: list[Links]) -> list[Links]:
    """The links of what one operation computes."""
    name, params = eqn.primitive.name, eqn.params
    if not any(links):
        return [{} for _ in eqn.outvars]
    if name in CALLS:
        inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
        return _walk(getattr(inner, "jaxpr", inner), links)
    if len(eqn.outvars) == 1:
        shapes = [v.aval.shape for v in eqn.invars]
        maps = _axes(name, params, shapes, eqn.outvars[0].aval.shape)
        return [_join([_moved(each, to) for each, to in zip(links, maps, strict=True)])]
    return [_join([_moved(each, {}) for each in links])] * len(eqn.outvars)


def _axes(name: str, params: dict, shapes: list[tuple], out: tuple) -> list[dict[int, int]]:
    """For each operand, which of its axes an output has element by element, and where."""
    first = shapes[0]
    if name in ELEMENTWISE:
        return [{k: k for k in range(len(shape)) if len(shape) == len(out) and shape[k] == out[k]} for shape in shapes]
    if name in REDUCTIONS:
        kept = [k for k in range(len(first)) if k not in params["axes"]]
        return [{k: j for j, k in enumerate(kept)}]
    if name == "broadcast_in_dim":
        to = params["broadcast_dimensions"]
        return [{k: to[k] for k in range(len(first)) if first[k] == out[to[k]]}, *({} for _ in shapes[1:])]
    if name == "transpose":
        return [{k: j for j, k in enumerate(params["permutation"])}]
    if name in ("reshape", "squeeze"):
        before, after = ([k for k, size in enumerate(shape) if size != 1] for shape in (first, out))
        same = [first[k] for k in before] == [out[k] for k in after]
        return [dict(zip(before, after, strict=True)) if same else {}, *({} for _ in shapes[1:])]
    if name in ("slice", "dynamic_slice"):
        return [{k: k for k in range(len(first)) if first[k] == out[k]}, *({} for _ in shapes[1:])]
    if name == "concatenate":
        return [{k: k for k in range(len(out)) if k != params["dimension"]} for _ in shapes]
    if name == "stack":
        return [{k: k + (k >= params["axis"]) for k in range(len(shape))} for shape in shapes]
    if name == "dot_general":
        return _dot_general(params, shapes)
    if name == "gather":
        return _gather(params, shapes, out)
    return [{} for _ in shapes]


def _dot_general(params: dict, shapes: list[tuple]) -> list[dict[int, int]]:
    """Batch axes come first, then the left operand's own, then the right one's."""
    contracted, batch = params["dimension_numbers"]
    start, maps = len(batch[0]), []
    for shape, summed, shared in zip(shapes, contracted, batch, strict=True):
        own = [k for k in range(len(shape)) if k not in summed and k not in shared]
        maps.append({k: j for j, k in enumerate(shared)} | {k: start + j for j, k in enumerate(own)})
        start += len(own)
    return maps


def _gather(params: dict, shapes: list[tuple], out: tuple) -> list[dict[int, int]]:
    """An index picks its own element of the output; the table that is picked from is shared, but for axes that are taken whole."""
    numbers, sizes, (table, indices) = params["dimension_numbers"], params["slice_sizes"], shapes
    picked = [k for k in range(len(out)) if k not in numbers.offset_dims]  # one for each axis of the indices but the last
    of_index = {k: picked[k] for k in range(len(indices) - 1)}
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    sliced = [k for k in range(len(table)) if k not in gone]
    of_table = {k: numbers.offset_dims[j] for j, k in enumerate(sliced) if sizes[k] == table[k]}
    for k, j in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        of_table[k] = picked[j]
    return [of_table, of_index]
