"""JAX keys split by NumPy, on the host.

`jax.random.split` is a program of its own for each number of keys, and compiling several is a good part of the time that a small fit takes.
"""

import jax
import numpy as np


def split(rng_key, num: int = 2) -> list:
    """Independent keys, others for each `num`."""
    return _derived(rng_key, (num,), num)


def fold_in(rng_key, index: int):
    """The `index`-th of a key's own keys, none of those that `split` gives."""
    return _derived(rng_key, (index, 0), 1)[0]


def generator(rng_key, *indices: int) -> np.random.Generator:
    """NumPy's random numbers from a JAX key, or from the key that `fold_in` gives for each index in turn."""
    words = np.asarray(jax.random.key_data(rng_key))
    for index in indices:
        words = _words(words, (index, 0), 1)[0]
    return np.random.default_rng(words)


def _derived(rng_key, purpose: tuple[int, ...], num: int) -> list:
    words = _words(np.asarray(jax.random.key_data(rng_key)), purpose, num)
    return [jax.random.wrap_key_data(part, impl=jax.random.key_impl(rng_key)) for part in words]


def _words(seed: np.ndarray, purpose: tuple[int, ...], num: int) -> np.ndarray:
    return np.random.SeedSequence(seed.tolist(), spawn_key=purpose).generate_state(num * seed.size).reshape(num, *seed.shape)
