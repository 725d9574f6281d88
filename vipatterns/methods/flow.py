"""Normalizing-flow VI: a standard Gaussian, bent by a network that can be inverted, in unconstrained coordinates.

Affine coupling layers (Dinh, Sohl-Dickstein and Bengio 2017, arXiv 1605.08803), flowjax's, from mean-field's mean and linear response.
benchmarks/results/flows.md has them beside other flows, on banana and funnel in two dimensions: the lower of their two ELBOs, -.02 where
log Z = 0, is above those of NumPyro's flows, and no flow took fewer CPU seconds; flowjax's autoregressive flow reached -.006 in 20 to 55 %
more.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import norm
from scipy import stats

from vipatterns import coordinates, linear_response, minibatch, mode, modes, svi
from vipatterns.certification import Account, certify
from vipatterns.density import Clock, Density, precision, read
from vipatterns.errors import InputError
from vipatterns.posterior import Fit

MAX_DIM = 1_000
NUM_MONITORED = 256
"""Points by which q's means and log sds are followed; a power of 2, for Sobol's. They are even, since restarts whose networks differ have
the same q, and only even points then have the same moments in all of them."""


@dataclass(frozen=True)
class Flow:
    """q(z) is whatever shape `num_layers` coupling layers can give to a Gaussian: skewed, curved, funnel-shaped.

    For posteriors of 2 to some 100 latents that no Gaussian fits; at most 1,000. Each restart has a network of its own and q is their
    mixture. A Gaussian posterior it fits nearly, where FullRank fits it exactly; and like every q it can miss modes that are far apart.
    """

    num_layers: int = 8
    """Coupling layers; each bends one half of the latents by what the other half says."""
    width: int = 32
    """Units of the hidden layer of each coupling layer's network."""
    bijection: Callable | None = None
    """(rng_key, dim) -> a flowjax bijection that is fast from noise to z, to be used instead; its inverse is needed too."""
    num_steps: int = 20_000
    """Step budget a restart; it stops by itself when converged."""
    num_restarts: int = 4
    """Independent starts, fitted side by side in one program; q is the mixture of those that ended well."""
    num_particles: int | None = None
    """Draws of q a gradient, in antithetic pairs; by default 32, fewer (down to 8) when the data are large."""
    batch_size: int | None = None
    """Rows of the data plate a gradient; None takes all. The search for a mode and the certificate always read all of them."""
    learning_rate: float = 0.01
    """First step size, of the network's weights; it decays by itself."""
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
        """Fits q to the posterior of `model` given `data`; see `vip.fit` for the arguments."""
        self._check_settings()
        key_mode, key_improve, key_start, key_svi = jax.random.split(rng_key, 4)
        clock = Clock()
        with precision(self.dtype):
            target = read(model, data, args=args, dtype=self.dtype)
            _check_size(target)
            log_p, num_data = minibatch.log_p(target, self.batch_size)
            params, rebuild = self._networks(key_start, target.dim)
            start = linear_response.improved(key_improve, target, mode.find(key_mode, target, clock), clock)
            log_p = log_p if self.batch_size is None else minibatch.steadied(log_p, minibatch.centre(start.derivatives, start.loc))
            curved = coordinates.of(start)
            num_particles = svi.num_particles(self.num_particles, num_data)

            def log_q(params, u):
                noise, log_det = rebuild(params).inverse_and_log_det(u)
                return norm.logpdf(noise).sum() + log_det

            def loss(params, rng_key, context, arrays):
                # log q is a function of u alone here: the derivative by q's own parameters has mean zero, and noise that does not
                # vanish where q fits (Roeder, Wu and Duvenaud 2017, arXiv 1703.09194).
                key_noise, key_batch = jax.random.split(rng_key)
                u = jax.vmap(rebuild(params).transform)(svi.antithetic(key_noise, num_particles, target.dim, self.dtype))
                value = jax.vmap(log_p, (0, None, None))(curved.z(u), key_batch, arrays)
                return (jax.vmap(log_q, (None, 0))(jax.lax.stop_gradient(params), u) - value).mean() - curved.log_det

            even = stats.qmc.Sobol(target.dim, rng=np.random.default_rng(0)).random(NUM_MONITORED)
            fixed = jnp.asarray(stats.norm.ppf(even), dtype=self.dtype)

            def monitor(params, context):
                u = jax.vmap(rebuild(params).transform)(fixed)
                return jnp.concatenate([u.mean(0) / u.std(0), jnp.log(u.std(0))])

            size = sum(leaf[0].size for leaf in params)
            optimum = svi.optimise(
                key_svi,
                loss,
                params,
                {},
                target.arrays,
                clock,
                num_steps=self.num_steps,
                learning_rate=self.learning_rate,
                monitor=monitor,
                optimizer=self.optimizer,
                chunk_size=svi.chunk_size(self.num_restarts * num_particles * max(num_data, size)),
                progress=progress,
                title=type(self).__name__,
            )

            def at(i):
                return [leaf[i] for leaf in optimum.params]

            def draw(rng_key, i):
                return rebuild(at(i)).transform(jax.random.normal(rng_key, (target.dim,), dtype=self.dtype))

            proposal = curved.proposal(draw, lambda u, i: log_q(at(i), u), svi.kept_restarts(optimum.elbos))
            found = modes.examine(target, start, clock)
            account = Account(optimum.stopped_because, optimum.num_steps, optimum.losses, optimum.rhat, modes=found)
            return certify(rng_key, self, target, proposal, account, clock, num_samples=self.num_samples, coords=coords, dims=dims)

    def _check_settings(self) -> None:
        for name, least in {"num_layers": 2, "width": 1, "num_steps": 1, "num_restarts": 1, "num_samples": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"Flow needs {name} of at least {least}, got {getattr(self, name)}.")

    def _networks(self, rng_key, dim: int) -> tuple[list, Callable]:
        """Weights, with a leading axis of restarts, and the function that makes a bijection of one restart's weights."""
        try:
            import equinox as eqx
            from flowjax.distributions import StandardNormal
            from flowjax.flows import coupling_flow
        except ImportError as error:
            raise InputError("Flow needs flowjax, which is not installed; run pip install 'vipatterns[flow]'.") from error

        def coupling(rng_key, dim):
            base = StandardNormal((dim,))
            return coupling_flow(rng_key, base_dist=base, flow_layers=self.num_layers, nn_width=self.width, invert=False).bijection

        made = [(self.bijection or coupling)(key, dim) for key in jax.random.split(rng_key, self.num_restarts)]
        weights, rest = zip(*[eqx.partition(bijection, eqx.is_inexact_array) for bijection in made], strict=True)
        # What is no weight, permutations among it, is the first restart's for all of them.
        structure = jax.tree.structure(weights[0])
        stacked = [jnp.stack(leaves) for leaves in zip(*map(jax.tree.leaves, weights), strict=True)]
        return stacked, lambda leaves: eqx.combine(jax.tree.unflatten(structure, leaves), rest[0])


def _check_size(target: Density) -> None:
    if target.dim == 1:
        raise InputError("Flow bends latents by one another and needs at least 2, the model has 1; use vip.FullRank() or vip.NUTS().")
    if target.dim > MAX_DIM:
        raise InputError(f"Flow is for at most {MAX_DIM} latents, the model has {target.dim}; use vip.LowRank() or vip.MeanField().")
