"""A good starting point and its curvature, from many starts at once.

One compiled program (value, gradient and Hessian at a batch of points) serves every start and every step of Newton's method, and
whoever needs these later. Steps are measured in units of the curvature, so that the units of a latent do not matter.

Some modes are at infinity (funnels, centred hierarchies), so what is returned is not the end of the path but its point with the
highest ELBO, as in Pathfinder (Zhang, Carpenter, Gelman and Vehtari 2022, arXiv 2108.03782).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from scipy import linalg, optimize

from vipatterns import keys, newton
from vipatterns.density import Clock, Density
from vipatterns.errors import InputError
from vipatterns.evaluation import Points, few, over_first
from vipatterns.refusal import nonfinite_data, nonfinite_sites

DENSE_DIM = 200
"""Up to this many latents the whole Hessian is computed; above it only its diagonal is estimated, and starts are equivariant
under rescaling only."""
MAX_STARTS = 8
MAX_DEAR = 32
"""Points at once where a Hessian is dear: as many as the ELBO has fixed draws at first; fewer cost less."""
NUM_CANDIDATES = 32
NUM_ELBO_DRAWS = 64
APART, NEARBY = 3.0, 7.0
"""Sds from which a mode is another one, and nats of mass below the best within which it counts."""


@dataclass(frozen=True)
class Start:
    """Where to begin, and coordinates z = loc + factor @ u in which the posterior is about a unit Gaussian."""

    loc: np.ndarray
    """(D,) unconstrained."""
    factor: np.ndarray
    """(D, D) lower Cholesky factor of the inverse Hessian of -log p there, or (D,) sds when D is large."""
    hessian: np.ndarray
    """(D, D) Hessian of -log p there, or its (D,) diagonal when D is large; made positive definite."""
    at_mode: bool
    """False where the search did not end in a mode (a mode at infinity, say) and loc is a point of its path."""
    derivatives: Callable
    """(K, D) points -> values (K,) of -log p, gradients (K, D) and Hessians (K, D, D), or their diagonals (K, D)."""
    trust: float = 0.0
    """In [0, 1]: how much of the noise in a gradient of the scales the Hessian predicts; 1 on Gaussian targets."""
    others: np.ndarray | None = None
    """(M, D) further modes that the search met, at least 3 sds away and within 7 nats of this one's mass; None where only one
    start was made or none ended in a mode."""

    @property
    def precision_diagonal(self) -> np.ndarray:
        """(D,) mean-field's optimal 1 / variance on a Gaussian target."""
        return self.hessian if self.hessian.ndim == 1 else np.diagonal(self.hessian)

    @property
    def sds(self) -> np.ndarray:
        """(D,) marginal sds that the curvature gives."""
        return self.factor if self.factor.ndim == 1 else np.sqrt((self.factor**2).sum(1))

    def around(self, loc: np.ndarray, offsets: np.ndarray) -> "Start":
        """Coordinates for q with mean `loc` (D,), from antithetic halves of draws from it: loc +- offsets (K, D).

        The Hessian is averaged over q: at the optimum of Gaussian VI that is q's precision (Opper and Archambeau 2009,
        doi 10.1162/neco.2008.08-07-592).
        """
        _, gradients, hessians = self.derivatives(np.concatenate([loc + offsets, loc - offsets]))
        hessian = hessians.mean(0)
        if not (np.isfinite(hessian).all() and np.isfinite(gradients).all()):
            return self
        fresh = at_point(loc, hessian, self.at_mode, self.derivatives)
        sampled = (gradients[: len(offsets)] - gradients[len(offsets) :]) * offsets / 2
        predicted = scaled(fresh.hessian, offsets) * offsets
        predicted = predicted - predicted.mean(0)
        return replace(fresh, trust=float(np.clip((sampled * predicted).sum() / (predicted**2).sum(), 0, 1)))

    def unscaled(self, offset: np.ndarray) -> np.ndarray:
        """The u of z - loc, (..., D)."""
        return offset / self.factor if self.factor.ndim == 1 else linalg.solve_triangular(self.factor, offset.T, lower=True).T


def scaled(matrix, u):
    """matrix @ u for u (..., D); a (D,) matrix is a diagonal."""
    return u * matrix if matrix.ndim == 1 else u @ matrix.T


def find(rng_key, target: Density, clock: Clock, *, num_starts: int = MAX_STARTS) -> Start:
    """The best starting point over several starts.

    Args:
        rng_key: a JAX key.
        target: the density.
        clock: counts compile time.
        num_starts: upper bound; fewer where a Hessian is dear.

    Raises:
        InputError: log p is finite at no start; names the sites, or the data.
    """
    rng = keys.generator(rng_key)
    centre = np.asarray(target.compiled(clock, "prior_centre", target.prior_centre, target.arrays)(target.arrays))
    num_starts = min(num_starts, _affordable(target))
    uniform = rng.uniform(-2, 2, (num_starts, target.dim))
    starts = np.concatenate([centre[None], np.zeros((1, target.dim)), uniform])
    if dear(target):  # with few starts none is made twice: the prior's centre often is zero
        starts = starts[np.sort(np.unique(starts, axis=0, return_index=True)[1])]
    starts = starts[:num_starts]
    found = _newton(target, starts, clock) if target.dim <= DENSE_DIM else _lbfgs(rng, target, starts, clock)
    return _best(rng, target, found, clock)


@dataclass(frozen=True)
class _Candidates:
    points: np.ndarray  # (K, D)
    hessians: np.ndarray  # (K, D, D) of -log p, or diagonals (K, D)
    at_mode: np.ndarray  # (K,) bool
    derivatives: Callable


def derivatives(target: Density, clock: Clock) -> Callable:
    """(K, D) points -> values (K,) of -log p, gradients (K, D) and Hessians (K, D, D)."""
    dim = target.dim

    def one(z, arrays):
        def negative(z):
            return -target.log_p(z, arrays)

        return negative(z), jax.grad(negative)(z), jax.hessian(negative)(z)

    # A Hessian carries `dim` tangents through the model, so memory allows fewer points at a time.
    if dear(target):
        block = MAX_DEAR
        first = over_first(one, min(few(target, dim), MAX_STARTS // 2))
        program = target.compiled(clock, "derivatives", first, jnp.zeros((block, dim), target.dtype), jnp.asarray(0), target.arrays)
    else:
        block = MAX_STARTS
        batch = int(np.clip(target.batch_size(10**9) // dim, 1, block))

        def at_all(points, count, arrays):
            return jax.lax.map(lambda z: one(z, arrays), points, batch_size=batch)

        program = target.compiled(clock, "derivatives", at_all, jnp.zeros((block, dim), target.dtype), jnp.asarray(0), target.arrays)

    def at(points):
        starts = range(0, len(points), block)
        blocks = np.concatenate([points, np.repeat(points[-1:], -len(points) % block, 0)]).reshape(-1, block, dim)
        counts = [jnp.asarray(min(block, len(points) - start)) for start in starts]
        parts = [tuple(np.array(out) for out in program(jnp.asarray(b), n, target.arrays)) for b, n in zip(blocks, counts, strict=True)]
        return tuple(np.concatenate(part)[: len(points)] for part in zip(*parts, strict=True))

    return at


def _affordable(target: Density) -> int:
    """Starts at once: fewer where a Hessian is dear."""
    return int(np.clip(4e8 / (target.num_data * target.dim**2), 2, MAX_STARTS))


def dear(target: Density) -> bool:
    """Whether a Hessian takes so long that a step of Newton's method is to be spared, and that none is computed for padding."""
    return _affordable(target) < MAX_STARTS


def _newton(target: Density, starts: np.ndarray, clock: Clock) -> _Candidates:
    """Ends of all starts, and points along the way, most of them of the best."""
    at = derivatives(target, clock)
    found = newton.minimise(lambda points, lanes: at(points), starts, lambda: clock.over)
    _check_some(target, starts, found.usable)
    ends = [s for s in np.argsort(found.value) if found.usable[s]][: NUM_CANDIDATES // 4]
    places = [(len(found.path) - 1, s) for s in ends]
    # Newton's first steps are its longest, and on the way to a mode at infinity it soon passes where the mass is: more points early on.
    steps = np.unique(np.geomspace(1, len(found.path), NUM_CANDIDATES // 2 - len(ends)).astype(int)) - 1
    places += [(int(i), ends[0]) for i in steps]
    places += [(min(i, len(found.path) - 1), s) for s in ends[1:] for i in (3, 10)]
    points, hessians = ([found.path[i][part][s] for i, s in places[:NUM_CANDIDATES]] for part in (0, 1))
    # A saddle point has a zero gradient too; symmetric starts of mixtures end in one.
    minima = [bool(found.converged[s] and newton.positive_definite(found.hessian[s])) for s in ends]
    return _Candidates(np.array(points), np.array(hessians), np.array(minima + [False] * (len(points) - len(ends))), at)


def _lbfgs(rng: np.random.Generator, target: Density, starts: np.ndarray, clock: Clock) -> _Candidates:
    """The same for many latents: L-BFGS in coordinates scaled by the Hessian's diagonal."""

    def negative(z, arrays):
        return -target.log_p(z, arrays)

    def diagonal(z, probes, arrays):  # Bekas, Kokiopoulou and Saad 2007, doi 10.1016/j.apnum.2007.01.003
        product = jax.vmap(lambda v: v * jax.jvp(jax.grad(lambda z: negative(z, arrays)), (z,), (v,))[1])(probes)
        return product.mean(0)

    probes = jnp.asarray(rng.choice([-1.0, 1.0], (32, target.dim)), target.dtype)
    first = jnp.asarray(starts[0])
    value_and_grad = target.compiled(clock, "value_and_grad", jax.value_and_grad(negative), first, target.arrays)
    program = target.compiled(clock, "curvature", diagonal, first, probes, target.arrays)

    def at_any(points):
        values, gradients = zip(*[at(z) for z in points], strict=True)
        return np.array(values), np.array(gradients), np.array([program(jnp.asarray(z), probes, target.arrays) for z in points])

    def sds(z):
        h = np.abs(np.asarray(program(jnp.asarray(z), probes, target.arrays)))
        typical = np.median(h[h > 0]) if (h > 0).any() else 1.0
        return 1 / np.sqrt(np.where(np.isfinite(h) & (h > 0), np.maximum(h, 1e-8 * typical), typical))

    def at(z):
        value, gradient = value_and_grad(jnp.asarray(z), target.arrays)
        return float(value), np.asarray(gradient)

    firsts = [at(z) for z in starts]
    usable = np.array([np.isfinite(v) and np.isfinite(g).all() for v, g in firsts])
    _check_some(target, starts, usable)
    x, path, at_mode = starts[np.flatnonzero(usable)[0]], [], False
    for _ in range(3):  # the scale is taken anew where the search has come to
        unit, origin = sds(x), x.copy()

        def scaled(u, origin=origin, unit=unit):
            value, gradient = at(origin + unit * u)
            if not (np.isfinite(value) and np.isfinite(gradient).all()):
                return 1e300, np.zeros_like(u)
            return value, gradient * unit

        def seen(u, origin=origin, unit=unit):
            path.append(origin + unit * u)
            if clock.over:
                raise StopIteration

        options = {"maxiter": 500, "maxcor": 20}
        found = optimize.minimize(scaled, np.zeros_like(x), jac=True, method="L-BFGS-B", callback=seen, options=options)
        x, at_mode = origin + unit * found.x, bool(found.success)
        if clock.over:
            break
    kept = [path[i] for i in np.unique(np.linspace(0, len(path) - 1, NUM_CANDIDATES - 1).astype(int))] if path else []
    points = np.array([x, *kept])
    return _Candidates(points, np.array([1 / sds(p) ** 2 for p in points]), np.array([at_mode] + [False] * len(kept)), at_any)


def _check_some(target: Density, starts: np.ndarray, usable: np.ndarray) -> None:
    """Raises when log p or its derivatives are finite at no start, naming the data or the sites."""
    if usable.any():
        return
    bad_data = nonfinite_data(target)
    if bad_data:
        raise InputError(f"The data are not usable: {bad_data}; drop or impute these rows, or mask them in the model (handlers.mask).")
    sites = nonfinite_sites(target, starts[0])
    if sites:
        raise InputError(
            f"The log density is not finite at the prior's centre nor at {len(starts) - 1} other starts; the sites that are not: "
            f"{', '.join(sites)}. Is an observation outside its distribution's support, or a scale zero?"
        )
    raise InputError("The log density is finite at the start but its gradient is not; a sqrt or norm at zero, or a masked NaN, does that.")


def _best(rng: np.random.Generator, target: Density, found: _Candidates, clock: Clock) -> Start:
    """The candidate whose Gaussian has the highest ELBO."""
    starts = [at_point(p, h, bool(m), found.derivatives) for p, h, m in zip(found.points, found.hessians, found.at_mode, strict=True)]
    points = Points(target, clock)
    num_draws = int(np.clip(points.block / NUM_CANDIDATES, 8, NUM_ELBO_DRAWS))
    half = rng.standard_normal((num_draws // 2, target.dim)).astype(target.dtype)
    noise = np.concatenate([half, -half])
    log_dets = np.array([np.log(s.factor if s.factor.ndim == 1 else np.diagonal(s.factor)).sum() for s in starts])
    with np.errstate(over="ignore", invalid="ignore"):  # -inf - -inf: a start whose curvature says nothing
        elbos = points.log_p(np.array([s.loc + scaled(s.factor, noise) for s in starts])).mean(1) + log_dets
    elbos = np.where(np.isfinite(elbos), elbos, -np.inf)
    # Within noise of the best the mode itself is preferred: it is exact where the others are points on the way.
    modes = [i for i in np.flatnonzero(found.at_mode) if elbos[i] > elbos.max() - 0.1]
    if not modes:
        return starts[int(np.argmax(elbos))]
    best = starts[modes[0]]
    return with_others(best, [starts[i] for i in np.flatnonzero(found.at_mode & (elbos > elbos.max() - NEARBY))])


def with_others(best: Start, modes: list[Start]) -> Start:
    """The best mode, with those of the modes that lie apart from it and from one another."""
    others: list[np.ndarray] = []
    for start in modes:
        sds = np.minimum(best.sds, start.sds)
        if all((np.abs(start.loc - z) > APART * sds).any() for z in [best.loc, *others]):
            others.append(start.loc)
    return replace(best, others=np.array(others).reshape(-1, len(best.loc)))


def at_point(loc: np.ndarray, hessian: np.ndarray, at_mode: bool, derivatives: Callable) -> Start:
    """A start with coordinates from a Hessian, its negative eigenvalues turned positive."""
    if hessian.ndim == 1:
        hessian = np.maximum(np.abs(hessian), 1e-12 * np.abs(hessian).max())
        return Start(loc, 1 / np.sqrt(hessian), hessian, at_mode, derivatives)
    scale = 1 / np.sqrt(np.maximum(np.abs(np.diagonal(hessian)), 1e-300))
    w, vectors = np.linalg.eigh(hessian * np.outer(scale, scale))
    w = np.maximum(np.abs(w), 1e-8)
    upper = np.linalg.qr((scale[:, None] * (vectors / np.sqrt(w))).T, mode="r")
    return Start(loc, upper.T * np.sign(np.diagonal(upper)), (vectors * w) @ vectors.T / np.outer(scale, scale), at_mode, derivatives)
