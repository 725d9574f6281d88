"""More draws of a posterior that was judged: fresh ones where there is a q to draw from, else the ones that are there, again."""

from collections.abc import Callable

import numpy as np
import xarray as xr

from vipatterns import diagnosis, keys
from vipatterns.draws import stored


def again(rng_key, posterior: xr.Dataset, num_samples: int) -> dict[str, np.ndarray]:
    """Draws that are there, thinned evenly or repeated evenly, in random order.

    Args:
        rng_key: a JAX key.
        posterior: dims (chain, draw, ...).
        num_samples: 1 or more.

    Returns:
        Variable -> (1, num_samples, *shape).
    """
    number = posterior.sizes["chain"] * posterior.sizes["draw"]
    chosen = diagnosis.resample(keys.generator(rng_key), np.zeros(number), num_samples)
    arrays = {str(k): v.transpose("chain", "draw", ...).values for k, v in posterior.data_vars.items()}
    return {k: v.reshape(number, *v.shape[2:])[chosen][None] for k, v in arrays.items()}


def fresh(rng_key, sampler: Callable, num_samples: int, *, weighed: int, kept: int) -> tuple[dict[str, np.ndarray], int, float]:
    """Fresh draws of q in rounds, each weighed, Pareto-smoothed and resampled.

    Args:
        rng_key: a JAX key.
        sampler: (rng_key, num_draws) -> site -> (S, ...), log_p, log_q.
        num_samples: 1 or more.
        weighed: draws of q a round, as many as were judged.
        kept: draws of the posterior a round, as many as were vouched for.

    Returns:
        Variable -> (1, num_samples, *shape); the number of draws of q; the worst k-hat of a round.
    """
    rounds, khats = [], []
    for i, start in enumerate(range(0, num_samples, kept)):
        key_draw, key_resample = keys.split(keys.fold_in(rng_key, i))
        values, log_p, log_q = sampler(key_draw, weighed)
        weights = diagnosis.smooth(log_p, log_q)
        chosen = diagnosis.resample(keys.generator(key_resample), weights.log_weights, min(kept, num_samples - start))
        rounds.append({stored(k): v[chosen] for k, v in values.items()})
        khats.append(weights.khat)
    return {k: np.concatenate([r[k] for r in rounds])[None] for k in rounds[0]}, weighed * len(khats), max(khats)
