"""Constants of jitted functions that outlive a change of precision.

JAX keeps one copy of a NumPy array that a jitted function closes over, in the precision in which it was first traced, for as long as that
trace is kept. Traced once more in another precision, the function mixes both ("verifier errors", "the same dtypes"), and a trace that
fails so keeps the copy for good. So the traces are forgotten before anything fails.
"""

import jax
import numpy as np

from vipatterns import programs


def closes_over_arrays(trace) -> bool:
    """Whether a jitted function inside a trace closes over NumPy arrays; traces in a stale precision are forgotten."""
    inner = [c for c in programs.constants(trace)[len(trace.consts) :] if isinstance(c, np.ndarray)]
    stale = 4 if jax.config.jax_enable_x64 else 8
    if any(c.dtype.itemsize == stale for c in inner):
        jax.clear_caches()
    return bool(inner)
