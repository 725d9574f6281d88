"""Pathfinder: Gaussians from the curvature that L-BFGS learns on its way from the tails to a mode, in unconstrained coordinates.

Zhang, Carpenter, Gelman and Vehtari 2022, arXiv 2108.03782. The paths and their L-BFGS factors are BlackJAX's; the Gaussians are made
here from them. In Algorithm 4 the mean is x + H grad log p(x), with H the inverse Hessian. BlackJAX 1.7.1 (`bfgs_sample`) adds H times the
gradient that its minimiser kept, which is that of -log p, so its means lie as far on the wrong side of x; and it never takes a path's last
point. tests/test_pathfinder.py shows both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from vipatterns import coordinates, gaussian, mode, modes, svi
from vipatterns.certification import Account, certify
from vipatterns.density import Clock, Density, precision, read
from vipatterns.errors import InputError
from vipatterns.posterior import Fit

MAX_DIM = 1_000
MAX_HALVINGS = 40
IN_A_MODE = 0.01
"""A path has ended in a mode where another Newton step would gain less than this many nats."""


@dataclass(frozen=True)
class Pathfinder:
    """q is the mixture, in equal parts, of the Gaussian with the highest ELBO on each path of L-BFGS: for up to 1,000 latents.

    The start is that of the other methods, `mode.find`'s. The paths begin far out around it and run in its curvature's coordinates, so that
    the units of a latent do not matter.
    """

    num_paths: int = 4
    """1 is single-path Pathfinder."""
    radius: float = 4.0
    """Paths begin at random within so many posterior sds of the start, in every coordinate."""
    max_steps: int = 100
    """Of one path."""
    history: int = 10
    """Steps by which L-BFGS knows the curvature."""
    num_particles: int | None = None
    """Draws for the ELBO of a point on a path, in antithetic pairs; by default 200, fewer (down to 8) when the data are large."""
    num_samples: int = 1_000
    """Posterior draws a chain, four chains."""
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
        self._check_settings()
        approximate = _approximate()
        key_mode, key_paths, key_elbo = jax.random.split(rng_key, 3)
        clock = Clock()
        with precision(self.dtype):
            target = read(model, data, args=args, dtype=self.dtype)
            if target.dim > MAX_DIM:
                raise InputError(f"Pathfinder is for at most {MAX_DIM} latents, the model has {target.dim}; use vip.MeanField().")
            start = mode.find(key_mode, target, clock)
            curved = coordinates.of(start)

            def log_p(u, arrays):
                # Relative to the start, so that a log p of millions does not drown the gains by which L-BFGS stops.
                return target.log_p(curved.z(u), arrays) - target.log_p(curved.loc, arrays)

            points, taken = self._paths(key_paths, approximate, log_p, target, clock)
            local, elbos, gains = self._best(key_elbo, log_p, points, taken, target, clock)
            kept = svi.kept_restarts(elbos)

            def draw(rng_key, i):
                return _at(local, i).draw(jax.random.normal(rng_key, (target.dim,), dtype=self.dtype))

            proposal = curved.proposal(draw, lambda u, i: _at(local, i).log_q(u), kept)
            ended = int((gains < IN_A_MODE).sum())
            account = Account(
                f"{'converged' if ended == self.num_paths else 'step budget'}: {ended} of {self.num_paths} paths ended in a mode, after "
                f"{taken.min()} to {taken.max()} steps; {len(kept)} of their Gaussians are within 10 nats of the best",
                int(taken.max()),
                modes=modes.examine(target, start, clock),
            )
            return certify(rng_key, self, target, proposal, account, clock, num_samples=self.num_samples, coords=coords, dims=dims)

    def _check_settings(self) -> None:
        for name in ("num_paths", "max_steps", "history", "num_samples"):
            if getattr(self, name) < 1:
                raise InputError(f"Pathfinder needs {name} of at least 1, got {getattr(self, name)}.")
        if not self.radius > 0:
            raise InputError(f"Pathfinder needs a radius above 0, got {self.radius}.")

    def _paths(self, rng_key, approximate: Callable, log_p: Callable, target: Density, clock: Clock) -> tuple["_Points", np.ndarray]:
        """All points of all paths, leading axes (path, step), and how many steps each path took."""

        def usable(u, arrays):
            value, gradient = jax.value_and_grad(log_p)(u, arrays)
            return jnp.isfinite(value) & jnp.isfinite(gradient).all()

        key_begin, key_path = jax.random.split(rng_key)
        shape = (self.num_paths, target.dim)
        begin = jax.random.uniform(key_begin, shape, minval=-self.radius, maxval=self.radius, dtype=self.dtype)
        program = clock.compile(jax.vmap(usable, (0, None)), begin, target.arrays)
        for _ in range(MAX_HALVINGS):  # towards the start, where log p is finite
            finite = program(begin, target.arrays)
            if finite.all():
                break
            begin = jnp.where(finite[:, None], begin, begin / 2)

        def path(key, begin, arrays):
            options = {"maxiter": self.max_steps, "maxcor": self.history, "ftol": 1e-8}
            _, info = approximate(key, lambda u: log_p(u, arrays), begin, num_samples=1, **options)
            return _Points(info.path.position, info.path.alpha, info.path.beta, info.path.gamma)

        keys = jax.random.split(key_path, self.num_paths)
        points = clock.compile(jax.vmap(path, (0, 0, None)), keys, begin, target.arrays)(keys, begin, target.arrays)
        moved = np.any(np.diff(points.position, axis=1) != 0, axis=2)  # a path that has ended repeats its last point
        return points, moved.sum(1)

    def _best(self, rng_key, log_p: Callable, points: "_Points", taken: np.ndarray, target: Density, clock: Clock) -> tuple:
        """The Gaussian of the point with the highest ELBO on each path, their ELBOs, and what a Newton step at each path's end gains."""
        num_particles = self.num_particles or int(np.clip(1e7 / target.num_data, 8, 200))
        noise = svi.antithetic(rng_key, num_particles, target.dim, self.dtype)

        def look(point, arrays):
            gradient = jax.grad(log_p)(point.position, arrays)
            local, gain = _local(point, gradient)
            values = target.over_points(log_p, len(noise))(jax.vmap(local.draw)(noise), arrays)
            return values.mean() + local.entropy, gain

        def at(steps):
            return _Points(*(leaf[np.arange(self.num_paths), steps] for leaf in points))

        def each(points, arrays):
            return jax.lax.map(lambda point: look(point, arrays), points)

        program = clock.compile(each, at(taken), target.arrays)
        seen = [program(at(np.minimum(step, taken)), target.arrays) for step in range(int(taken.max()) + 1)]
        elbos = np.array([elbo for elbo, _ in seen])  # (step, path)
        elbos = np.where(np.isfinite(elbos), elbos, -np.inf)
        if not np.isfinite(elbos).any():
            raise InputError("The ELBO is finite at no point of any path: draws leave the support of log p; try vip.MeanField().")
        best = at(elbos.argmax(0))
        gradient = jax.jit(jax.vmap(jax.grad(log_p), (0, None)))(best.position, target.arrays)
        return jax.vmap(_local)(best, gradient)[0], elbos.max(0), np.asarray(seen[-1][1])


def _approximate() -> Callable:
    try:
        from blackjax.vi.pathfinder import approximate
    except ImportError as error:
        raise InputError("Pathfinder needs blackjax, which is not installed; run pip install 'vipatterns[pathfinder]'.") from error
    return approximate


class _Points(NamedTuple):
    """Points on paths, with the factors of L-BFGS's inverse Hessian diag(alpha) + beta gamma beta'."""

    position: jax.Array  # (D,)
    alpha: jax.Array  # (D,)
    beta: jax.Array  # (D, 2 history)
    gamma: jax.Array  # (2 history, 2 history)


class _Local(NamedTuple):
    """A Gaussian with covariance A (I + Q (L L' - I) Q') A, A a diagonal and Q'Q = I (Zhang et al. 2022, Algorithm 4)."""

    mean: jax.Array  # (D,)
    scale: jax.Array  # (D,), of A
    basis: jax.Array  # (D, M), Q
    inner: jax.Array  # (M, M), L, lower triangular
    inverse: jax.Array  # of L; XLA's batched triangular solve is slow

    @property
    def entropy(self):
        log_det = jnp.log(self.scale).sum() + jnp.log(jnp.diagonal(self.inner)).sum()
        return log_det + gaussian.unit_entropy(self.mean.shape[0])

    def draw(self, noise):
        inside = self.basis.T @ noise
        return self.mean + self.scale * (noise + self.basis @ (self.inner @ inside - inside))

    def log_q(self, u):
        white = (u - self.mean) / self.scale
        inside = self.basis.T @ white
        solved = self.inverse @ inside
        return 0.5 * (u.shape[0] - white @ white + inside @ inside - solved @ solved) - self.entropy


def _local(point: _Points, gradient) -> tuple[_Local, jax.Array]:
    """The Gaussian at a point with this gradient of log p, and what the Newton step to its mean gains, nats."""
    scale = jnp.sqrt(point.alpha)
    basis, upper = jnp.linalg.qr(point.beta / scale[:, None])
    inner = jnp.linalg.cholesky(jnp.eye(len(upper)) + upper @ point.gamma @ upper.T)
    step = point.alpha * gradient + point.beta @ (point.gamma @ (point.beta.T @ gradient))
    inverse = solve_triangular(inner, jnp.eye(len(inner)), lower=True)
    return _Local(point.position + step, scale, basis, inner, inverse), 0.5 * gradient @ step


def _at(local: _Local, i) -> _Local:
    return _Local(*(leaf[i] for leaf in local))
