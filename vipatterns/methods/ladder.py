"""The ladder: the cheapest method whose posterior earns a certificate."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from vipatterns import keys, mode
from vipatterns.density import precision
from vipatterns.errors import InputError
from vipatterns.methods.adaptive import IMIS
from vipatterns.methods.dadvi import DADVI
from vipatterns.methods.nuts import NUTS
from vipatterns.posterior import Fit, Rung
from vipatterns.progress import say

SHORT_WARMUP = 300
"""Iterations of NUTS where a rung before it found the place and the coordinates."""
LEAPFROGS = 15
"""Gradients a draw of NUTS takes in good coordinates, about: to foretell its time."""
WORTH_SAYING = 60.0
"""Seconds from which a rung's expected time is said."""


@dataclass(frozen=True)
class Ladder:
    """Tries its rungs in order of expected cost and returns the first fit whose certificate is ok.

    IMIS and NUTS start where the rung before them ended, in coordinates of that rung's covariance, NUTS with a short warm-up. If no rung
    is certified, the last one's fit is returned with `certificate.ok` False and a sentence, or the one before it where time cut the last
    one short and its weights are worse. Every rung's outcome is on the Fit.
    """

    rungs: tuple[Any, ...] = (DADVI(), IMIS(), NUTS())
    """Methods, the cheapest first."""
    max_seconds: float = math.inf
    """Wall time: no rung begins after it; DADVI and IMIS end their search at it and are judged by few draws, NUTS keeps its draws."""

    def fit(
        self,
        rng_key,
        model: Callable,
        data: dict | None = None,
        *,
        args: tuple = (),
        coords: dict | None = None,
        dims: dict | None = None,
        progress: bool | None = None,
    ) -> Fit:
        """Climbs until a certificate is earned; see `vip.fit` for the arguments."""
        if not self.rungs:
            raise InputError("Ladder needs at least one rung, such as vip.DADVI().")
        climbed: list[Rung] = []
        fit, began = None, time.perf_counter()
        compile_seconds = run_seconds = 0.0
        options = {"args": args, "coords": coords, "dims": dims, "progress": progress}
        for key, method in zip(keys.split(rng_key, len(self.rungs)), self.rungs, strict=True):
            rung_began = time.perf_counter()
            left = max(self.max_seconds - (rung_began - began), 0)
            if fit is not None and left == 0:
                climbed.append(Rung(type(method).__name__, False, f"Not tried: {self.max_seconds:.0f} s were over.", 0.0))
                continue
            try:
                tried = self.climb(method, key, model, data, fit, left, options)
            except KeyboardInterrupt:
                if fit is None:
                    raise
                fit = replace(fit, stopped_because=f"interrupted: Ctrl-C during {type(method).__name__}; the rung before it is kept")
                break
            except InputError as error:
                if method is self.rungs[-1] and fit is None:
                    raise
                climbed.append(Rung(type(method).__name__, False, str(error), time.perf_counter() - rung_began))
            else:
                climbed.append(Rung(tried.name, tried.certificate.ok, tried.certificate.verdict, time.perf_counter() - rung_began))
                compile_seconds, run_seconds = compile_seconds + tried.compile_seconds, run_seconds + tried.run_seconds
                fit = tried if fit is None else _better(fit, tried)
                if fit.certificate.ok or fit.stopped_because.startswith("interrupted"):
                    break
        assert fit is not None, "the last rung's error is raised where no rung came to a fit"
        idata = fit.idata.copy()
        for node in (idata, idata["posterior"]):  # the key that repeats the whole climb
            node.attrs["seed"] = np.asarray(jax.random.key_data(rng_key)).tolist()
        return replace(fit, idata=idata, rungs=tuple(climbed), compile_seconds=compile_seconds, run_seconds=run_seconds)

    def climb(
        self, method: Any, rng_key: jax.Array, model: Callable, data: dict | None, before: Fit | None, left: float, options: dict
    ) -> Fit:
        """One rung, from where the one before it ended.

        Args:
            method: the rung.
            rng_key: a JAX key.
            model: as for `vip.fit`.
            data: as for `vip.fit`.
            before: the fit of the rung before; None for the first.
            left: wall seconds that are left.
            options: the remaining arguments of `vip.fit`, by name.

        Returns:
            The rung's own Fit, certified or not.
        """
        if hasattr(method, "max_seconds"):
            method = replace(method, max_seconds=min(left, method.max_seconds))
        if isinstance(method, IMIS) and before is not None and before.around is not None:
            return method.fit(rng_key, model, data, **options, around=before.around)
        if not isinstance(method, NUTS):
            return method.fit(rng_key, model, data, **options)
        if before is None or before.around is None:
            return method.fit(rng_key, model, data, **options)
        method = replace(method, num_warmup=min(method.num_warmup, SHORT_WARMUP))
        with precision(before.target.dtype if before.target else method.dtype):
            expected = _expected_seconds(method, before.around)
        if expected > WORTH_SAYING:
            say(f"NUTS comes next and will take about {expected / 60:.0f} min.", options["progress"])
        return method.fit(rng_key, model, data, **options, around=before.around)


def _better(before: Fit, tried: Fit) -> Fit:
    """The later rung's, unless it was cut short and its weights are worse."""
    cut = not tried.certificate.ok and tried.stopped_because.startswith("time budget")
    return before if cut and before.certificate.khat < tried.certificate.khat else tried


def _expected_seconds(method: NUTS, around: mode.Start) -> float:
    """Of sampling, from the time that the program of derivatives takes, which is compiled already."""
    points = np.repeat(around.loc[None], method.num_chains, 0)
    began = time.perf_counter()
    around.derivatives(points)
    # A Hessian costs about as much as a gradient for every latent; above mode.DENSE_DIM a few products stand in for it.
    gradients = 1 + min(around.loc.size, mode.DENSE_DIM)
    return (time.perf_counter() - began) / gradients * LEAPFROGS * (method.num_warmup + method.num_samples)
