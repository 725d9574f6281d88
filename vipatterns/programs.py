"""Compiled programs, kept from one fit to the next: on a small model compiling is nearly all of the time.

A program is used again only where the model's trace is the same, letter for letter and constant for constant, on data of the same shapes.
The trace is made anew for every fit, so a global that the model reads, or a function that it calls, may change between two fits.
"""

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

KEPT = 16
"""Models, or shapes of one model's data, whose programs are kept; those used longest ago are dropped."""

_kept: OrderedDict[tuple, dict] = OrderedDict()


class Clock:
    """Wall time, split into compiling and running, and whether a budget of it is used up.

    Args:
        max_seconds: the budget, which whoever searches looks at between two steps.
    """

    def __init__(self, max_seconds: float = math.inf):
        self.max_seconds = max_seconds
        self.began = time.perf_counter()
        self.compile_seconds = 0.0

    def compile(self, function: Callable, *args, wide: bool = False) -> Callable:
        """`function` compiled for arguments of these shapes; the time it takes is counted as compiling.

        With `wide` a processor's widest registers are used, where XLA is content with half of them: exp and log of long
        arrays take less time.
        """
        began = time.perf_counter()
        options = {"xla_cpu_prefer_vector_width": 512} if wide and jax.default_backend() == "cpu" else None
        compiled = jax.jit(function).lower(*args).compile(compiler_options=options)
        self.compile_seconds += time.perf_counter() - began
        return compiled

    @property
    def run_seconds(self) -> float:
        """Seconds since the clock was made that were not spent compiling."""
        return time.perf_counter() - self.began - self.compile_seconds

    @property
    def over(self) -> bool:
        """The budget is used up."""
        return self.max_seconds < math.inf and self.compile_seconds + self.run_seconds > self.max_seconds


def of(model: Callable, trace) -> dict:
    """The programs of a model whose trace (a closed jaxpr of all that is ever computed) has been met before, else none yet.

    Args:
        model: held as long as its programs are kept, so that no other can take its identity.
        trace: `jax.make_jaxpr` of the model's functions, on shapes.

    Returns:
        A dict to be filled by whoever compiles: (name, shapes) -> program, which takes all that may differ by its arguments.
    """
    digest = hashlib.blake2b(str(trace).encode())
    for constant in map(_plain, constants(trace)):
        digest.update(repr((constant.dtype, constant.shape)).encode() + np.ascontiguousarray(constant).tobytes())
    key = id(model), digest.digest()
    programs = _kept.setdefault(key, {"model": model})
    _kept.move_to_end(key)
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return programs


def jitted(model: Callable, function: Callable) -> Callable:
    """As jax.jit(function), but what was compiled outlives it, for the next function of the same trace.

    Args:
        model: whose function it is.
        function: whose arguments are pytrees of arrays.
    """
    compiled = {}

    def call(*args):
        leaves, structure = jax.tree.flatten(args)
        shapes = structure, tuple(map(jax.typeof, leaves))
        if shapes not in compiled:
            traced = jax.jit(function).trace(*args)
            kept, whole = of(model, traced.jaxpr), (*shapes, jax.tree.structure(traced.out_info))
            if whole not in kept:
                kept[whole] = traced.lower().compile()
            compiled[shapes] = kept[whole]
        return compiled[shapes](*args)

    return call


def widest(trace, argument: int) -> int:
    """Elements of the largest array in a trace (a closed jaxpr) that is made of one of its arguments, by its place among them."""
    return max([1, *(math.prod(var.aval.shape) for var in _made_of(trace.jaxpr, {trace.jaxpr.invars[argument]})[1])])


def _made_of(jaxpr, known: set) -> tuple[set, list]:
    """The variables of a jaxpr that depend on those that are known, and all such variables of it and of the functions in it."""
    known, found = set(known), list(known)
    for equation in jaxpr.eqns:
        depends = [isinstance(var, jax.extend.core.Var) and var in known for var in equation.invars]
        if not any(depends):
            continue
        known.update(equation.outvars)
        found += equation.outvars
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(inner, "eqns"):
                inner = getattr(inner, "jaxpr", inner)
                # A loop's condition and the branches of a choice take fewer arguments than their equation: all of these may depend.
                same = len(inner.invars) == len(depends)
                found += _made_of(inner, {v for i, v in enumerate(inner.invars) if not same or depends[i]})[1]
    return known, found


def constants(trace) -> list:
    """Arrays that a trace closes over: its own first, then those of the functions in it."""
    found = list(getattr(trace, "consts", ()))
    for equation in trace.eqns:
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(inner, "eqns"):
                found += constants(inner)
    return found


def _plain(constant) -> np.ndarray:
    is_key = hasattr(constant, "dtype") and jnp.issubdtype(constant.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(constant) if is_key else constant)
