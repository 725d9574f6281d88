"""A guide of the user's own: hand-written, a factory of one, or an AutoGuide, with any NumPyro objective.

The restarts are trained side by side; the one with the highest ELBO is weighed, since a guide's density is in general known at
its own draws only.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to
from numpyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from numpyro.infer.autoguide import AutoDelta, AutoGuide, AutoLaplaceApproximation

from vipatterns import svi
from vipatterns.certification import Account, Proposal, certify
from vipatterns.density import Clock, Density, FullSize, precision, read
from vipatterns.errors import InputError
from vipatterns.objectives import ScoreFunction, StickingTheLanding
from vipatterns.posterior import Fit

NUM_MONITOR_DRAWS = 64
ELBOS = (Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, ScoreFunction, StickingTheLanding)
"""Objectives whose loss is minus the ELBO; others are not called so."""


@dataclass(frozen=True)
class Guide:
    """SVI with a guide of your own.

    The model may have `numpyro.param` sites: they are learned with the guide, and the certificate is about the latents at the
    learned values. A model that subsamples its plates is trained on minibatches and weighed at full size.
    """

    guide: Callable
    """A guide with the model's arguments; a class or function that takes only `model`, such as AutoNormal; or an AutoGuide."""
    objective: ELBO = field(default_factory=lambda: Trace_ELBO(num_particles=8))
    """What is maximised: NumPyro's, or one of `vip.objectives`. Its losses need not be ELBOs; the fit's `elbo` always is one."""
    num_steps: int = 20_000
    """Step budget a restart; it stops by itself when converged."""
    num_restarts: int = 4
    """Independent starts, fitted side by side in one program; q is the mixture of those that ended well."""
    jitter: float = 0.1
    """Sd of the noise that disperses the restarts, in the unconstrained coordinates of the guide's parameters."""
    learning_rate: float = 0.02
    """First step size; it decays by itself."""
    num_samples: int = 1_000
    """Posterior draws a chain, four chains."""
    optimizer: optax.GradientTransformation | None = None
    """Scales gradients before the step size; default optax.scale_by_adam()."""
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
        """Fits the guide to the posterior of `model` given `data`; see `vip.fit` for the arguments."""
        key_init, key_jitter, key_svi, key_monitor = jax.random.split(rng_key, 4)
        clock = Clock()
        with precision(self.dtype):
            # Shapes and refusals first, with the model's own parameters hidden.
            shapes = read(handlers.block(model, hide_fn=_is_param), data, args=args, dtype=self.dtype)
            guide = _instance(self.guide, model)
            initial, transforms = _parameters(key_init, model, guide, shapes, self.num_restarts, clock)
            noise = jax.random.normal(key_jitter, (self.num_restarts, ravel_pytree(initial)[0].size // self.num_restarts))
            unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], initial))[1]
            params = jax.tree.map(lambda leaf, jitter: leaf + self.jitter * jitter, initial, jax.vmap(unravel)(noise))

            def constrained(params):
                return {name: transforms[name](value) for name, value in params.items()}

            def loss(params, rng_key, context, arrays):
                call_args, call_kwargs = shapes.rebuild(arrays)
                return self.objective.loss(rng_key, constrained(params), model, guide, *call_args, **call_kwargs)

            def drawn(rng_key, params, arrays):
                return _draw(guide, shapes, rng_key, constrained(params), arrays)

            monitor_keys = jax.random.split(key_monitor, NUM_MONITOR_DRAWS)

            def monitor(params, context):
                z = jax.vmap(lambda key: drawn(key, params, shapes.arrays)[0])(monitor_keys)
                return jnp.concatenate([z.mean(0) / context, jnp.log(z.std(0) + 1e-12)])

            first = jax.tree.map(lambda leaf: leaf[0], params)
            _check(guide, shapes, constrained(first))
            units = jax.jit(jax.vmap(lambda key: drawn(key, first, shapes.arrays)[0]))(monitor_keys).std(0)
            optimum = svi.optimise(
                key_svi,
                loss,
                params,
                units + 1e-12,
                shapes.arrays,
                clock,
                num_steps=self.num_steps,
                learning_rate=self.learning_rate,
                monitor=monitor,
                optimizer=self.optimizer,
                chunk_size=svi.chunk_size(self.num_restarts * self.objective.num_particles * shapes.num_data),
                progress=progress,
                title=type(self).__name__,
                objective="ELBO" if isinstance(self.objective, ELBOS) else "objective",
            )
            best = int(np.nanargmax(optimum.elbos))
            learned = constrained(jax.tree.map(lambda leaf: leaf[best], optimum.params))
            target, caveat = shapes, ""
            own = {k: v for k, v in learned.items() if k in _names(model, shapes)}
            if own:
                fixed = handlers.block(handlers.substitute(model, data=own), hide_fn=_is_param)
                target = read(fixed, data, args=args, dtype=self.dtype)
                caveat = f"the model's parameters {sorted(own)} are held at their estimates, their uncertainty is not covered"
            proposal = Proposal(lambda key, i: _draw(guide, target, key, learned, target.arrays), None, np.array([0]))
            account = Account(optimum.stopped_because, optimum.num_steps, optimum.losses, optimum.rhat, caveat)
            return certify(rng_key, self, target, proposal, account, clock, num_samples=self.num_samples, coords=coords, dims=dims)


def _is_param(site: dict) -> bool:
    return site["type"] == "param"


def _instance(guide: Callable, model: Callable) -> Callable:
    """The guide itself, made from the model if what was given makes guides; AutoGuides keep state, so theirs is a copy."""
    if not isinstance(guide, AutoGuide):
        wants = [p.name for p in inspect.signature(guide).parameters.values() if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]
        guide = guide(model) if wants == ["model"] else guide
    elif guide.prototype_trace is not None:
        raise InputError("This AutoGuide was already set up on other data; pass a new one, or its class: vip.Guide(AutoNormal).")
    else:
        guide = copy.copy(guide)
    if isinstance(guide, (AutoDelta, AutoLaplaceApproximation)):
        raise InputError(f"{type(guide).__name__} has no density while it is trained; use vip.Laplace().")
    return guide


def _parameters(rng_key, model: Callable, guide: Callable, shapes: Density, num_restarts: int, clock: Clock) -> tuple[dict, dict]:
    """Unconstrained starts of every param site of guide and model, (restart, ...), and the way to their constraints."""
    args, kwargs = shapes.rebuild(shapes.arrays)
    if isinstance(guide, AutoGuide):
        with handlers.seed(rng_seed=rng_key):
            guide(*args, **kwargs)  # sets up its prototype, outside of any trace
    found: dict[str, dict] = {}

    def start(key, arrays):
        args, kwargs = shapes.rebuild(arrays)
        key_guide, key_model = jax.random.split(key)
        guide_trace = handlers.trace(handlers.seed(guide, key_guide)).get_trace(*args, **kwargs)
        replayed = handlers.replay(handlers.seed(model, key_model), guide_trace)
        sites = {**guide_trace, **handlers.trace(replayed).get_trace(*args, **kwargs)}
        found.update({k: s for k, s in sites.items() if _is_param(s)})
        return {k: biject_to(s["kwargs"].get("constraint", constraints.real)).inv(s["value"]) for k, s in found.items()}

    keys = jax.random.split(rng_key, num_restarts)
    initial = clock.compile(jax.vmap(start, (0, None)), keys, shapes.arrays)(keys, shapes.arrays)
    if not initial:
        raise InputError("The guide has no numpyro.param sites, so there is nothing to fit.")
    return initial, {k: biject_to(s["kwargs"].get("constraint", constraints.real)) for k, s in found.items()}


def _names(model: Callable, shapes: Density) -> set[str]:
    """The model's own param sites."""
    names: set[str] = set()

    def look(arrays):
        args, kwargs = shapes.rebuild(arrays)
        trace = handlers.trace(handlers.seed(model, jax.random.key(0))).get_trace(*args, **kwargs)
        names.update(k for k, s in trace.items() if _is_param(s))
        return 0

    jax.eval_shape(look, shapes.arrays)
    return names


def _draw(guide: Callable, target: Density, rng_key, params: dict, arrays):
    """One draw of the guide at full size: z (D,) unconstrained, and its log density there."""
    args, kwargs = target.rebuild(arrays)
    trace = handlers.trace(FullSize(handlers.seed(handlers.substitute(guide, data=params), rng_key))).get_trace(*args, **kwargs)
    log_q, values = 0.0, {}
    for name, site in trace.items():
        if site["type"] == "sample" and not site["is_observed"]:
            log_prob = site["fn"].log_prob(site["value"]) if site["intermediates"] in (None, []) else _log_prob(site)
            log_q = log_q + jnp.sum(log_prob)
            values[name] = site["value"]
    z, log_jacobian = target.unconstrain(values, arrays)
    return z, log_q + log_jacobian


def _log_prob(site: dict):
    return site["fn"].log_prob(site["value"], site["intermediates"])


def _check(guide: Callable, target: Density, params: dict) -> None:
    """Every latent of the model needs a site in the guide, of its shape, and none may be left over."""
    found: dict[str, tuple] = {}

    def look(arrays):
        args, kwargs = target.rebuild(arrays)
        trace = handlers.trace(FullSize(handlers.seed(handlers.substitute(guide, data=params), jax.random.key(0)))).get_trace(
            *args, **kwargs
        )
        for name, site in trace.items():
            if site["type"] == "sample" and not site["is_observed"] and not site["infer"].get("is_auxiliary", False):
                found[name] = jnp.shape(site["value"])
        return 0

    jax.eval_shape(look, target.arrays)
    missing, extra = sorted(set(target.latents) - set(found)), sorted(set(found) - set(target.latents))
    if missing or extra:
        raise InputError(f"The guide must have the model's latent sites: it lacks {missing}, and the model has no {extra}.")
    for name, shape in found.items():
        if shape != target.latents[name].shape:
            raise InputError(f"The guide draws {name!r} with shape {shape}, the model with shape {target.latents[name].shape}.")
