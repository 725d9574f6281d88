"""IMIS: importance sampling that adds a component where the weights say that q lacks mass.

Incremental mixture importance sampling: Raftery and Bao 2010, doi 10.1111/j.1541-0420.2010.01399.x, from a posterior that was found
before, not from the prior. With many latents a covariance of weighted neighbours is noise, so that components are adapted along the few
directions in which log p differs most from q (its gradient's second moments: Constantine, Dow and Wang 2014, arXiv 1304.2070), and have
the conditional mode and curvature across them, as in INLA (Rue, Martino and Chopin 2009, doi 10.1111/j.1467-9868.2008.00700.x).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import linalg
from scipy.special import gammaln

from vipatterns import diagnosis, keys, linear_response, mode, modes, newton
from vipatterns.certification import Account, certify
from vipatterns.density import Clock, precision, read
from vipatterns.errors import InputError
from vipatterns.evaluation import Points
from vipatterns.posterior import Fit

FIRST, EACH = 8_000, 1_000
"""Draws of the q that it starts from, and of each component that is added; as many neighbours give a component its covariance."""
NUM_PROBES, FEWEST_DIRECTIONS, MOST_DIRECTIONS, FEW_LATENTS = 128, 2, 4, 8
"""Points at which gradients are compared; along 2 to 4 directions components are adapted, and along all of up to 8 latents."""
STRONG = 1.0
"""Mean square of the slope of log p - log q, per sd of q, from which a direction counts."""
FEWEST_DEGREES, MOST_DEGREES = 7, 30
"""Of freedom of the Student-t's, as many as there are latents between these."""
TRIED, POOR = 8, 0.05
"""Components after which it gives up where the effective share of the draws is below this and has not doubled."""
CURVATURE = 0.02, 1e8
"""Of -log p across the adapted directions, in q's coordinates: taken to be within these where it is flat, negative or steep."""


@dataclass(frozen=True)
class IMIS:
    """A mixture of Student-t's that grows where the importance weights are largest; judged by fresh draws.

    For posteriors that are bent, skewed or narrow at one end, along a few directions, and that one Student-t misses: what NUTS is spared
    of, for up to 200 latents. It does not look for further modes.
    """

    num_components: int = 20
    """Added to the Student-t that it starts from, at most."""
    num_samples: int = 1_000
    """Posterior draws a chain, four chains."""
    max_seconds: float = math.inf
    """Wall time, compiling included, at which no more components are added; the mixture that there is is judged by few draws."""
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
        around: mode.Start | None = None,
    ) -> Fit:
        """Fits q to the posterior of `model` given `data`; see `vip.fit` for the arguments.

        Args:
            around: a place and its coordinates to start from (`Fit.around`), instead of mean-field's and linear response's.
        """
        clock = Clock(self.max_seconds)
        key_start, key_adapt = keys.split(rng_key)
        with precision(self.dtype):
            target = read(model, data, args=args, dtype=self.dtype)
            if target.dim > mode.DENSE_DIM:
                raise InputError(f"IMIS is for at most {mode.DENSE_DIM} latents, the model has {target.dim}; use vip.NUTS().")
            start = around
            if start is None:
                key_mode, key_base = keys.split(key_start)
                start = linear_response.improved(key_base, target, mode.find(key_mode, target, clock), clock)
            proposal, said = self._adapted(keys.generator(key_adapt), start, Points(target, clock), clock)
            account = Account(said, len(proposal.weights) - 1, modes=modes.examine(target, start, clock))
            fit = certify(rng_key, self, target, proposal, account, clock, num_samples=self.num_samples, coords=coords, dims=dims)
        return replace(fit, around=start)

    @np.errstate(over="ignore", invalid="ignore")  # of draws along a flat direction; they are refused for it
    def _adapted(self, rng: np.random.Generator, start: mode.Start, points: Points, clock: Clock) -> tuple["Mixture", str]:
        """The mixture, and how it came about."""
        frame, num_directions = _frame(rng, start)
        dim = len(start.loc)
        q = Mixture(start.loc, frame, np.ones(1), np.zeros((1, dim)), np.eye(dim)[None])
        y = q.drawn(rng, 0, FIRST)
        log_p, log_parts, counts = points.log_p(q.z(y)), q.log_parts(y), [FIRST]
        efficiency: list[float] = []  # effective share of all draws so far
        while True:
            log_q = np.logaddexp.reduce(log_parts + np.log(q.weights), axis=1)
            pooled = diagnosis.smooth(log_p, log_q)
            efficiency.append(pooled.ess / len(y))
            added = len(efficiency) - 1
            if math.isnan(pooled.log_evidence):
                return q, f"stopped after {added} components were added: log p - log q cannot be weighed at the draws of q"
            in_vain = added >= TRIED and efficiency[-1] < min(POOR, 2 * efficiency[0])
            even = pooled.khat == -math.inf
            over = clock.over and not even
            if added == self.num_components or in_vain or even or over:
                break
            q = q.joined(*_component(start, frame, num_directions, y, np.exp(pooled.log_weights)))
            new = q.drawn(rng, added + 1, EACH)
            old_parts = np.concatenate([log_parts, q.log_parts(y, [added + 1])], 1)
            log_parts = np.concatenate([old_parts, q.log_parts(new)])
            log_p, y, counts = np.concatenate([log_p, points.log_p(q.z(new))]), np.concatenate([y, new]), [*counts, EACH]
            q = replace(q, weights=np.array(counts) / sum(counts))
        share = f"the effective share of {len(y):,} draws went from {efficiency[0]:.1%} to {efficiency[-1]:.1%}"
        why = "converged, the weights are even:" if even else "no gain:" if in_vain else "step budget:"
        if over and not in_vain and added < self.num_components:
            why = f"time budget: {clock.max_seconds:.0f} s were over;"
        where = "" if start.at_mode or over else "; the search from which it started met no mode, which may lie at infinity"
        return q, f"{why} {added} components were added along {num_directions} of {dim} directions, {share}{where}"


def _frame(rng: np.random.Generator, start: mode.Start) -> tuple[np.ndarray, int]:
    """Coordinates y of z = loc + frame y (D, D) in which q is about a unit Gaussian, and how many of the first to adapt along."""
    factor, dim = np.diag(start.factor) if start.factor.ndim == 1 else start.factor, len(start.loc)
    if dim <= FEW_LATENTS:
        return factor, dim
    u = rng.standard_normal((NUM_PROBES, dim))
    slopes = u - start.derivatives(start.loc + u @ factor.T)[1] @ factor  # of log p - log q, zero where q is right
    slopes = slopes[np.isfinite(slopes).all(1)]
    sizes = np.linalg.norm(slopes, axis=1)
    # Far out one slope can outweigh all others.
    slopes = slopes * np.minimum(1, 10 * np.median(sizes) / np.maximum(sizes, 1e-300))[:, None] if len(slopes) else np.zeros((1, dim))
    strength, directions = np.linalg.eigh(slopes.T @ slopes / len(slopes))
    return factor @ directions[:, ::-1], int(np.clip((strength > STRONG).sum(), FEWEST_DIRECTIONS, MOST_DIRECTIONS))


def _component(start: mode.Start, frame: np.ndarray, num: int, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre (D,) and factor (D, D) of a component at the draw of largest weight; `num` directions by neighbours, the rest by curvature."""
    a = y[np.argmax(weights), :num]
    near = np.argsort(((y[:, :num] - a) ** 2).sum(1))[:EACH]
    w = weights[near] + 1 / len(y)  # Raftery and Bao: halfway to even weights
    w /= w.sum()
    away = y[near, :num] - a
    trust = 1 / (1 + num * (w**2).sum())
    inner = trust * (away * w[:, None]).T @ away + (1 - trust) * np.eye(num) * (w @ away**2).mean()
    b, outer, slope = _across(start, frame, a)
    lower = np.linalg.cholesky(inner)
    factor = np.block([[lower, np.zeros((num, len(b)))], [slope @ lower, np.linalg.cholesky(outer)]])
    return np.append(a, b), factor


def _across(start: mode.Start, frame: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the other directions given the adapted ones at `a` (A,): mode (B,), covariance (B, B) and slope of the mode (B, A)."""
    num, rest = len(a), len(frame) - len(a)
    nothing = np.zeros(rest), np.eye(rest), np.zeros((rest, num))
    if not rest:
        return nothing

    def at(b):
        value, gradient, hessian = start.derivatives(start.loc + np.concatenate([np.tile(a, (len(b), 1)), b], 1) @ frame.T)
        return value, gradient @ frame, frame.T @ hessian @ frame

    def given(b, _):
        value, gradient, hessian = at(b)
        return value, gradient[:, num:], hessian[:, num:, num:]

    found = newton.minimise(given, np.zeros((1, rest)))
    hessian = at(found.x)[2][0]
    if not (found.usable[0] and np.isfinite(hessian).all()):
        return nothing
    curvature, vectors = np.linalg.eigh(hessian[num:, num:])
    covariance = vectors / np.clip(np.abs(curvature), *CURVATURE) @ vectors.T
    return found.x[0], covariance, -covariance @ hessian[num:, :num]


@dataclass(frozen=True)
class Mixture:
    """Student-t's in coordinates y, z = loc + frame y."""

    loc: np.ndarray
    """(D,)."""
    frame: np.ndarray
    """(D, D)."""
    weights: np.ndarray
    """(C,), of sum one."""
    centres: np.ndarray
    """(C, D) in y."""
    factors: np.ndarray
    """(C, D, D) lower Cholesky factors of the components' scales."""
    components: np.ndarray = field(default_factory=lambda: np.array([0]))
    """To the certificate it is one q."""

    @property
    def degrees(self) -> int:
        """Of freedom."""
        return min(max(FEWEST_DEGREES, len(self.loc)), MOST_DEGREES)

    def z(self, y: np.ndarray) -> np.ndarray:
        """(S, D) -> (S, D)."""
        return self.loc + y @ self.frame.T

    def joined(self, centre: np.ndarray, factor: np.ndarray) -> "Mixture":
        """With one component more, whose weight is still to be set."""
        weights = np.append(self.weights, 0.0)
        return replace(
            self, weights=weights, centres=np.append(self.centres, centre[None], 0), factors=np.append(self.factors, factor[None], 0)
        )

    def drawn(self, rng: np.random.Generator, i: int, num_draws: int) -> np.ndarray:
        """(S, D) of component i, in y."""
        noise = rng.standard_normal((num_draws, len(self.loc)))
        noise *= np.sqrt(self.degrees / rng.chisquare(self.degrees, (num_draws, 1)))
        return self.centres[i] + noise @ self.factors[i].T

    def log_parts(self, y: np.ndarray, which: Sequence[int] | None = None) -> np.ndarray:
        """Log density in y of each component, or of `which`, (S, C)."""
        which = range(len(self.weights)) if which is None else which
        return np.stack([self._log_part(y, i) for i in which], axis=1)

    def _log_part(self, y: np.ndarray, i: int) -> np.ndarray:
        dim, degrees, factor = len(self.loc), self.degrees, self.factors[i]
        constant = gammaln((degrees + dim) / 2) - gammaln(degrees / 2) - dim / 2 * math.log(degrees * math.pi)
        distance = (linalg.solve_triangular(factor, (y - self.centres[i]).T, lower=True, check_finite=False) ** 2).sum(0)
        return constant - np.log(np.diagonal(factor)).sum() - (degrees + dim) / 2 * np.log1p(distance / degrees)

    def sampler(self, clock: Clock) -> Callable:
        """(rng_key, num_draws) -> z (S, D), log density (S,)."""
        log_det = np.linalg.slogdet(self.frame)[1]

        def draw(rng_key, num_draws: int):
            rng = keys.generator(rng_key)
            counts = rng.multinomial(num_draws, self.weights)
            # Shuffled, so that the certificate's halves and their like are of the whole mixture.
            y = rng.permutation(np.concatenate([self.drawn(rng, i, n) for i, n in enumerate(counts)]))
            return self.z(y), np.logaddexp.reduce(self.log_parts(y) + np.log(self.weights), axis=1) - log_det

        return draw
