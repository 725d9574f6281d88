"""DADVI with linear response: mean-field VI with fixed draws, then the covariance that mean-field leaves out.

Giordano, Ingram and Broderick 2024, arXiv 2304.05527; linear response: Giordano, Broderick and Jordan 2018, arXiv 1709.02536.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np
from scipy.special import gammaln

from vipatterns import keys, linear_response, many, mode, modes
from vipatterns.certification import Account, certify
from vipatterns.density import Clock, Density, precision, read
from vipatterns.errors import InputError
from vipatterns.evaluation import Points
from vipatterns.posterior import Fit

MAX_DIM = 1_000
MAX_ERROR = 0.05
"""Error of q's means that the fixed draws may leave, in posterior sds, before more are taken."""
MIN_DEGREES = 7
"""Of freedom of the Student-t that is drawn from; as many as there are latents where these are more."""


@dataclass(frozen=True)
class DADVI:
    """Draws come from a multivariate Student-t at mean-field's mean, with the covariance of linear response.

    The ELBO's draws are fixed, so that it is a plain function, which Newton's method maximises in about ten steps: no step size, no
    noise, nothing to tune. Usually the cheapest posterior that earns a certificate; for up to 1,000 latents.
    """

    num_draws: int = 32
    """Fixed draws of the ELBO at first, a power of 2; scrambled Sobol points in antithetic pairs."""
    max_draws: int = 512
    """They are doubled up to so many, until the error that they leave in q's means is small against the posterior sds."""
    num_samples: int = 1_000
    """Posterior draws a chain, four chains."""
    max_seconds: float = math.inf
    """Wall time, compiling included, at which the search ends after the step that it is in; where it came to is judged by few draws."""
    dtype: str = "float64"
    """Of all that is computed: float64, or float32."""

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
        """Fits q to the posterior of `model` given `data`; see `vip.fit` for the arguments."""
        clock = Clock(self.max_seconds)
        with precision(self.dtype):
            target = read(model, data, args=args, dtype=self.dtype)
            self._refuse(target)
            return self._fitted(rng_key, target, clock, coords=coords, dims=dims)

    def fit_many(self, rng_key: jax.Array, model: Callable, datasets: Sequence[dict], *, args: tuple = ()) -> Iterator[Fit]:
        """Fits to many data sets of one shape, whose optima are found together by two compiled programs.

        Each fit is judged as one alone would be, but for the search for further modes, which has four starts for each. Data sets where
        these met no mode, or whose optimum needs more draws, are fitted one by one. `max_seconds` is that of each, not of all.

        Args:
            rng_key: a JAX key.
            model: a NumPyro model.
            datasets: argument name -> value, each with the shapes of the first.
            args: positional arguments, the same for all.

        Yields:
            A Fit for each, in order.

        Raises:
            InputError: as `fit`; or a data set is not like the first.
        """
        key_like, key_base, key_starts, key_fits = keys.split(rng_key, 4)
        with precision(self.dtype):
            clock = Clock()
            first = read(model, datasets[0], args=args, dtype=self.dtype)
            self._refuse(first)
            targets = [first.on(data, args) for data in datasets]
            found: list = [None] * len(targets)
            if first.dim <= mode.DENSE_DIM:
                base = linear_response.base_draws(key_base, self.num_draws, first.dim)
                like = mode.find(key_like, first, clock)
                found = many.optima(keys.generator(key_starts), targets, like, base, clock)
        for i, target in enumerate(targets):
            with precision(self.dtype):
                good = found[i] is not None and found[i][1].converged and found[i][1].error < MAX_ERROR
                fit = self._fitted(keys.fold_in(key_fits, i), target, Clock(self.max_seconds), *(found[i] if good else ()))
            yield fit

    def _fitted(
        self,
        rng_key,
        target: Density,
        clock: Clock,
        start: mode.Start | None = None,
        optimum: linear_response.Optimum | None = None,
        *,
        coords: dict | None = None,
        dims: dict | None = None,
    ) -> Fit:
        """The fit to one target, from an optimum where there is one already."""
        key_mode, key_base, key_elbo = keys.split(rng_key, 3)
        num_draws = self.num_draws
        if start is None or optimum is None:
            start = mode.find(key_mode, target, clock)
            optimum, num_draws = self._climb(key_base, target, start, clock)
        over = clock.max_seconds if clock.over else None
        found = modes.examine(target, start, clock)
        account = _account(optimum, start, num_draws, found, over)
        factor = np.diag(optimum.scale) if optimum.factor is None else optimum.factor
        proposal = Student(optimum.loc, factor)
        fit = certify(rng_key, self, target, proposal, account, clock, num_samples=self.num_samples, coords=coords, dims=dims)
        elbo, elbo_mcse = _elbo(key_elbo, target, optimum, clock)
        return replace(fit, around=linear_response.moved(start, optimum.loc, factor), elbo=elbo, elbo_mcse=elbo_mcse)

    def _climb(self, key_base, target: Density, start: mode.Start, clock: Clock) -> tuple[linear_response.Optimum, int]:
        """The optimum of as many fixed draws as it takes."""
        num_draws, eta = self.num_draws, np.zeros(2 * target.dim)
        while True:
            base = linear_response.base_draws(keys.fold_in(key_base, num_draws), num_draws, target.dim)
            optimum, eta = linear_response.maximise(target, start, base, eta, clock)
            if optimum.error < MAX_ERROR or 2 * num_draws > self.max_draws or not np.isfinite(eta).all() or clock.over:
                return optimum, num_draws
            num_draws *= 2

    def _refuse(self, target: Density) -> None:
        if target.dim > MAX_DIM:
            raise InputError(f"DADVI is for at most {MAX_DIM} latents, the model has {target.dim}; use vip.MeanField() or vip.NUTS().")
        if self.num_draws < 4 or self.num_draws & (self.num_draws - 1):
            raise InputError(f"DADVI needs num_draws to be a power of 2, 4 or more, got {self.num_draws}.")


def _account(optimum: linear_response.Optimum, start: mode.Start, num_draws: int, found: modes.Modes, over: float | None) -> Account:
    """Why it stopped, and what the weights of q's draws cannot say.

    Weights judge any q, also one that is no maximum: a search that ended before it, its steps or `over` seconds being used up, is told in
    the verdict. An ELBO that still rises and is not curved like a maximum is that of an improper posterior or of a mode at infinity, where
    the weights of finitely many draws may look well: refused.
    """
    steps = len(optimum.losses) - 1
    where = "" if start.at_mode or over is not None else "; the search from which it started met no mode, which may lie at infinity"
    left = f"{num_draws} fixed draws, which leave an error of {optimum.error:.3f} sd in q's means{where}"
    stopped, said, refused = f"converged: {left}", "", ""
    if not optimum.converged:
        stopped = f"step budget: the ELBO of {num_draws} fixed draws still rises, its maximum may lie at infinity{where}"
        said = f"the search for q ended after {steps} steps, before its maximum, so that the weights alone vouch for it"
        if over is not None:
            stopped = f"time budget: {over:.0f} s were over after {steps} steps of the search for q"
        elif optimum.factor is None:
            refused = f"the ELBO still rose after {steps} steps and is not curved like a maximum there, so the posterior may be improper"
    elif over is not None and optimum.error >= MAX_ERROR:
        stopped = f"time budget: {over:.0f} s were over with {left}"
    elif optimum.factor is None:
        said = "the ELBO is not curved like a maximum where the search ended, so q has mean-field's sds"
    caveat = f"{said}; modes that no start met are not covered" if said else ""
    return Account(stopped, steps, optimum.losses[None], caveat=caveat, refused=refused, modes=found)


@np.errstate(over="ignore", invalid="ignore")  # where the density rises for ever
def _elbo(rng_key, target: Density, optimum: linear_response.Optimum, clock: Clock) -> tuple[float, float]:
    """The ELBO of mean-field's q, which was maximised, and its standard error, by fresh draws: the fixed ones flatter it.

    The Student-t's own would say more of its tails than of the fit.
    """
    points = Points(target, clock)
    noise = keys.generator(rng_key).standard_normal((points.block, target.dim))
    log_q = -0.5 * (noise**2 + math.log(2 * math.pi)).sum(1) - np.log(optimum.scale).sum()
    ratio = points.log_p(optimum.loc + optimum.scale * noise) - log_q
    return float(ratio.mean()), float(ratio.std() / math.sqrt(ratio.size))


@dataclass(frozen=True)
class Student:
    """A multivariate Student-t with a covariance's factor for a scale: heavier than Gaussian, so that no weight explodes."""

    loc: np.ndarray
    """(D,)."""
    factor: np.ndarray
    """(D, D) lower Cholesky factor."""
    components: np.ndarray = field(default_factory=lambda: np.array([0]))

    def sampler(self, clock: Clock) -> Callable:
        """(rng_key, num_draws) -> z (S, D), log density (S,)."""
        dim = len(self.loc)
        degrees = max(MIN_DEGREES, dim)
        constant = gammaln((degrees + dim) / 2) - gammaln(degrees / 2) - dim / 2 * math.log(degrees * math.pi)
        constant -= np.log(np.diagonal(self.factor)).sum()

        def draw(rng_key, num_draws: int):
            rng = keys.generator(rng_key)
            noise = rng.standard_normal((num_draws, dim)) * np.sqrt(degrees / rng.chisquare(degrees, (num_draws, 1)))
            with np.errstate(over="ignore", invalid="ignore"):  # along a flat direction; such draws are refused
                z = self.loc + noise @ self.factor.T
            return z, constant - (degrees + dim) / 2 * np.log1p((noise**2).sum(1) / degrees)

        return draw
