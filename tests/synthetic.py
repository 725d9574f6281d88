"""Fits with known draws, for the tests of what judges, draws and reports them."""

import numpy as np
import xarray as xr

from vipatterns.posterior import Certificate, Fit


class Vague:
    """A method by name only."""

    def __init__(self, fit=None):
        self.result = fit

    def __repr__(self):
        return "Vague()"

    def fit(self, rng_key, model, data, **settings):
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def fit_of(draws, *, method=None, ok=True, resampled=True, ess=None, coords=None, dims=None, losses=None, stopped="converged", **figures):
    """A Fit whose posterior is `draws`, site -> (chain, draw, ...)."""
    dims = dims or {}
    variables = {
        name: (("chain", "draw", *dims.get(name, [f"{name}_dim_{i}" for i in range(value.ndim - 2)])), value)
        for name, value in draws.items()
    }
    posterior = xr.Dataset(variables, coords=coords)
    num_draws = posterior.sizes["chain"] * posterior.sizes["draw"]
    groups = {"/posterior": posterior} | ({"/proposal": posterior} if resampled else {})
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = {"seed": "0", "dtype": "float64", "device": "cpu"}
    defaults = {"khat": 0.1, "khat_threshold": 0.7, "log_evidence": -10.0, "log_evidence_mcse": 0.01} if resampled else {"rhat": 1.001}
    certificate = Certificate(
        ok, "Looks fine." if ok else "k-hat is 1.2; its tails are too short.", ess=ess or float(num_draws), **(defaults | figures)
    )
    elbo = {"elbo": -10.5, "elbo_mcse": 0.02} if resampled else {}
    return Fit(
        method=method or Vague(),
        idata=tree,
        certificate=certificate,
        stopped_because=f"{stopped}: as told.",
        num_steps=1000,
        compile_seconds=0.5,
        run_seconds=1.25,
        target=None,
        losses=losses,
        **elbo,
    )


def normal(rng, loc, scale, num=1000, chains=4):
    """(chain, draw, *shape) independent normal draws."""
    loc, scale = np.broadcast_arrays(np.asarray(loc, float), np.asarray(scale, float))
    return loc + scale * rng.normal(size=(chains, num, *loc.shape))
