"""Constants of jitted functions that outlive a change of precision.

JAX keeps one copy of a NumPy array that a jitted function closes over, in the precision in which it was first traced, for as long as that
trace is kept. Traced once more in another precision, the function mixes both ("verifier errors", "the same dtypes"), and a trace that
fails so keeps the copy for good. So the traces are forgotten before anything fails.
"""

import jax
import numpy as np


def closes_over_arrays(function, *args) -> bool:
    """Whether a jitted function inside `function` closes over NumPy arrays; traces in a stale precision are forgotten."""
    constants = _dtypes_inside(function, args)
    stale = 4 if jax.config.jax_enable_x64 else 8
    if any(dtype.itemsize == stale for dtype in constants):
        jax.clear_caches()
    return bool(constants)


def _dtypes_inside(function, args) -> set[np.dtype]:
    """Dtypes of the constants of inner functions. Nothing of the trace is kept."""
    found: set[np.dtype] = set()

    def look(jaxpr) -> None:
        for equation in jaxpr.eqns:
            for inner in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
                if hasattr(inner, "eqns"):
                    found.update(c.dtype for c in getattr(inner, "consts", ()) if isinstance(c, np.ndarray))
                    look(inner)

    look(jax.make_jaxpr(function)(*args).jaxpr)
    return found
