"""The ladder: the cheapest method whose posterior earns a certificate."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax

from vipatterns.methods.mean_field import MeanField
from vipatterns.methods.nuts import NUTS
from vipatterns.posterior import Fit, Rung


@dataclass(frozen=True)
class Ladder:
    """Tries its rungs in order of expected cost and returns the first fit whose certificate is ok.

    If none is, the last rung's fit is returned with `certificate.ok` False and a sentence. Every rung's outcome is on the Fit.
    """

    rungs: tuple[Any, ...] = (MeanField(), NUTS())

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
        climbed: list[Rung] = []
        fit = None
        compile_seconds = run_seconds = 0.0
        for key, method in zip(jax.random.split(rng_key, len(self.rungs)), self.rungs, strict=True):
            began = time.perf_counter()
            try:
                fit = method.fit(key, model, data, args=args, coords=coords, dims=dims, progress=progress)
            except KeyboardInterrupt:
                if fit is None:
                    raise
                fit = replace(fit, stopped_because=f"interrupted: Ctrl-C during {type(method).__name__}; the rung before it is kept")
                break
            climbed.append(Rung(fit.name, fit.certificate.ok, fit.certificate.verdict, time.perf_counter() - began))
            compile_seconds, run_seconds = compile_seconds + fit.compile_seconds, run_seconds + fit.run_seconds
            if fit.certificate.ok or fit.stopped_because.startswith("interrupted"):
                break
        assert fit is not None, "a ladder has rungs"
        return replace(fit, rungs=tuple(climbed), compile_seconds=compile_seconds, run_seconds=run_seconds)
