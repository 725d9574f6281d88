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


def fresh(rng_key, sampler: Callable, num_samples: int, *, kept: int) -> tuple[dict[str, np.ndarray], int, float]:
    """Fresh draws of q in rounds, each weighed, Pareto-smoothed and resampled.

    Args:
        rng_key: a JAX key.
        sampler: rng_key -> `thinning.Drawn`, as many draws of q as were judged.
        num_samples: 1 or more.
        kept: draws of the posterior a round, as many as were vouched for.

    Returns:
        Variable -> (1, num_samples, *shape); the number of draws of q; the worst k-hat of a round.
    """
    rounds, khats, weighed = [], [], 0
    for i, start in enumerate(range(0, num_samples, kept)):
        key_draw, key_resample = keys.split(keys.fold_in(rng_key, i))
        drawn = sampler(key_draw)
        weights = diagnosis.smooth(drawn.log_p, drawn.log_q)
        chosen = diagnosis.resample(keys.generator(key_resample), drawn.log_weights(weights), min(kept, num_samples - start))
        rounds.append({stored(k): v[chosen] for k, v in drawn.values.items()})
        khats.append(weights.khat)
        weighed += drawn.size
    return {k: np.concatenate([r[k] for r in rounds])[None] for k in rounds[0]}, weighed, max(khats)
