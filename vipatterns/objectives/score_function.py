"""The score-function estimator of the ELBO's gradient: E[(f - a) d log q], for any draw, discrete or not.

Ranganath, Gerrish and Blei 2014, Black box variational inference, arXiv 1401.0118.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.infer import ELBO
from numpyro.primitives import mutable

from vipatterns.errors import InputError
from vipatterns.objectives.dependence import dependence, downstream
from vipatterns.objectives.particles import Particles, Terms

CONTROL_VARIATES = ("none", "running_mean", "leave_one_out", "optimal")
STATE = "running mean of the costs"
DECAY = 0.9


class ScoreFunction(ELBO):
    """Minus the ELBO, whose gradient is taken by the score function, unbiased for any guide that can be drawn from.

    A draw's score is multiplied by the costs that depend on it (Rao-Blackwellisation): those terms of log p - log q that are computed
    from it or from later draws, and along an axis of independent draws, such as a plate, only those of the same element. That is
    read off the program, see `dependence`. Scales and masks apply to costs, never to the score of what was drawn, so that a
    subsampled plate counts once.

    Args:
        num_particles: draws of the guide a step, K.
        control_variate: what is taken off the costs.
            `"none"`: nothing.
            `"running_mean"`: the mean cost of the steps before, by site. It lives in SVI's mutable state: pass
            `objective.remembering(guide)` to numpyro.infer.SVI in the guide's place.
            `"leave_one_out"`: the mean cost of the other particles: VarGrad, Richter et al. 2020, arXiv 2010.10436.
            `"optimal"`: for each parameter the coefficient a* = E[s^2 f] / E[s^2] of its score s, estimated from the other particles,
            so that the estimate stays unbiased.
        rao_blackwellize: False multiplies each score by all of log p - log q.
        reparameterize: whether draws that have a reparameterised sampler take that gradient and only the others the score function.
        vectorize_particles: as in numpyro.infer.ELBO.

    Raises:
        InputError: the control variate is none of these, or needs two particles or more.
    """

    can_infer_discrete = True

    def __init__(
        self,
        num_particles: int = 8,
        *,
        control_variate: str = "leave_one_out",
        rao_blackwellize: bool = True,
        reparameterize: bool = False,
        vectorize_particles: bool | Callable = True,
    ):
        if control_variate not in CONTROL_VARIATES:
            raise InputError(f"control_variate must be one of {', '.join(CONTROL_VARIATES)}, got {control_variate!r}.")
        if control_variate in ("leave_one_out", "optimal") and num_particles < 2:
            raise InputError(
                f"control_variate={control_variate!r} compares particles: num_particles must be 2 or more, got {num_particles}."
            )
        super().__init__(num_particles, vectorize_particles)
        self.control_variate, self.rao_blackwellize, self.reparameterize = control_variate, rao_blackwellize, reparameterize

    def __repr__(self):
        settings = (
            f"control_variate={self.control_variate!r}, rao_blackwellize={self.rao_blackwellize}, reparameterize={self.reparameterize}"
        )
        return f"ScoreFunction(num_particles={self.num_particles}, {settings})"

    def remembering(self, guide):
        """The guide, with a place in SVI's mutable state for the running mean of each draw's costs."""

        def remembers(*args, **kwargs):
            with handlers.trace() as trace:
                returned = guide(*args, **kwargs)
            zeros = {name: jnp.zeros(()) for name, site in trace.items() if site["type"] == "sample"}
            empty: Any = {"weight": jnp.zeros(()), "total": zeros}
            mutable(STATE, empty)
            return returned

        return remembers

    def loss(self, rng_key, param_map, model, guide, *args, **kwargs):
        """Minus the ELBO in nats, a scalar; its gradient is the estimator's."""
        return self.loss_with_mutable_state(rng_key, param_map, model, guide, *args, **kwargs)["loss"]

    def loss_with_mutable_state(self, rng_key, param_map, model, guide, *args, **kwargs) -> Any:
        """The same, with the running mean that the next step needs."""
        plate_key, rng_key = jax.random.split(rng_key)
        particles = Particles(model, guide, args, kwargs, plate_key, STATE)
        keys = jax.random.split(rng_key, self.num_particles)
        state: Any = param_map.get(STATE)
        if self.control_variate == "optimal":
            return {"loss": self._optimal(particles, keys, param_map), "mutable_state": None}
        elbos, scores, costs = self.vectorize_particles_fn(lambda key: self._particle(particles, key, param_map), keys)
        if self.control_variate == "leave_one_out":
            baselines = {name: (cost.sum(0) - cost) / (self.num_particles - 1) for name, cost in costs.items()}
        elif self.control_variate == "running_mean":
            if state is None:
                raise InputError(
                    "A running mean is state that numpyro.infer.SVI carries from step to step: give it objective.remembering(guide) in the "
                    "guide's place. vip.Guide and SVI.evaluate carry none; there use control_variate='leave_one_out'."
                )
            baselines = {name: state["total"][name] / jnp.where(state["weight"] > 0, state["weight"], 1.0) for name in costs}
            means = {name: DECAY * state["total"][name] + (1 - DECAY) * cost.mean() for name, cost in costs.items()}
            state = {"weight": DECAY * state["weight"] + 1 - DECAY, "total": {**state["total"], **means}}
        else:
            baselines = dict.fromkeys(costs, 0.0)
        surrogate = sum(((scores[k] * (costs[k] - baselines[k])).sum() for k in costs), jnp.zeros(())) / self.num_particles
        elbo = elbos.mean() + surrogate - jax.lax.stop_gradient(surrogate)
        return {"loss": -elbo, "mutable_state": None if state is None else {STATE: state}}

    def _particle(self, particles: Particles, rng_key, params: dict) -> tuple[jax.Array, dict, dict]:
        """The ELBO of one draw, differentiable where no score is needed; scores and costs by the sites that need them."""
        scored: set[str] = set()

        def path(site) -> bool:
            passes = self.reparameterize and site["fn"].has_rsample
            if not passes:
                scored.add(site["name"])
            return passes

        values = particles.draw(rng_key, params, path)
        terms = particles.weigh(rng_key, values, params)
        # The expectation of a score is zero, so the direct gradient of log q of a draw that is scored is noise.
        log_q = {name: jax.lax.stop_gradient(x) if name in scored else x for name, x in terms.log_q.items()}
        elbo = Terms(terms.log_p, log_q, {}, {}, "").elbo
        costs = _costs(terms)
        scores = {name: terms.score[name] for name in values if name in scored}
        if self.rao_blackwellize:
            links = dependence(lambda values: _costs(particles.weigh(rng_key, values, params)), values)
            laws = dependence(lambda values: particles.weigh(rng_key, values, params).score, values)
            reached = downstream(links, {name: laws[name] for name in values})
        else:
            reached = dict.fromkeys(scores, dict.fromkeys(costs, frozenset()))
        # One number for each element of the draw, or one for a whole axis, so that particles can be stacked in front.
        total = {name: jnp.zeros([1] * score.ndim) for name, score in scores.items()}
        for name, score in scores.items():
            for cost, pairs in reached[name].items():
                total[name] += _laid_along(costs[cost], pairs, score.ndim)
        return elbo, scores, total

    def _optimal(self, particles: Particles, keys, params: dict) -> jax.Array:
        """Minus the ELBO, linear in the parameters with the estimated gradient for its slope."""
        held = jax.tree.map(jax.lax.stop_gradient, params)

        def gradients(key):
            def parts(params):
                elbo, scores, costs = self._particle(particles, key, params)
                with_costs = sum(((scores[k] * costs[k]).sum() for k in costs), jnp.zeros(()))
                return elbo, with_costs, sum((s.sum() for s in scores.values()), jnp.zeros(()))

            (elbo, *_), pull = jax.vjp(parts, held)
            one, zero = jnp.ones_like(elbo), jnp.zeros_like(elbo)
            return elbo, *(pull(unit)[0] for unit in ((one, zero, zero), (zero, one, zero), (zero, zero, one)))

        elbos, path, with_costs, score = self.vectorize_particles_fn(gradients, keys)

        def slope(path, h, s):
            others = (s**2).sum(0) - s**2
            a = ((h * s).sum(0) - h * s) / jnp.where(others > 0, others, 1.0)
            return (path + h - a * s).mean(0)

        slopes = jax.tree.map(slope, path, with_costs, score)
        rise = sum(((x - h) * g).sum() for x, h, g in zip(*map(jax.tree.leaves, (params, held, slopes)), strict=True))
        return -(elbos.mean() + rise)


def _costs(terms: Terms) -> dict[str, jax.Array]:
    """The terms of log p - log q, by site and side."""
    costs = {f"p {name}": x for name, x in terms.log_p.items()} | {f"q {name}": -x for name, x in terms.log_q.items()}
    return jax.lax.stop_gradient(costs)


def _laid_along(cost: jax.Array, pairs: frozenset, ndim: int) -> jax.Array:
    """A cost for each element of a draw of `ndim` batch axes: summed over the axes that are not the draw's own."""
    axis = dict(sorted((i, k) for i, k in pairs if i < ndim))
    kept = cost.sum([k for k in range(cost.ndim) if k not in axis.values()])
    order = {k: j for j, k in enumerate(sorted(axis.values()))}
    kept = kept.transpose([order[k] for k in axis.values()])
    sizes = dict(zip(axis, kept.shape, strict=True))
    return kept.reshape([sizes.get(i, 1) for i in range(ndim)])
