"""vae_importance_weighted: its gradient against vip.objectives and the plain one, its bounds against quadrature and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer import RenyiELBO, Trace_ELBO

import vipatterns as vip
from vipatterns.patterns import vae_importance_weighted as pattern


@pytest.fixture
def small(monkeypatch):
    """One latent, two units: few gradients to compare, and z can be summed over."""
    monkeypatch.setattr(pattern, "LATENTS", 1)
    monkeypatch.setattr(pattern, "HIDDEN", 2)


@pytest.fixture
def images():
    """Six images of three pixels that vary."""
    x = pattern.data()["x"]
    return jnp.asarray(x[:6, [10, 20, 43]], jnp.float32)


def start(x, rng_key):
    """Parameters that are nowhere special, as one flat dict."""
    params = {}
    for i, function in enumerate((pattern.model, pattern.guide)):
        trace = handlers.trace(handlers.seed(function, jax.random.fold_in(rng_key, i))).get_trace(x, num_pixels=x.shape[1])
        params |= {name: site["value"] for name, site in trace.items() if site["type"] == "param"}
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(rng_key, len(leaves))
    return jax.tree.unflatten(structure, [jax.random.normal(k, leaf.shape) * 0.7 for k, leaf in zip(keys, leaves, strict=True)])


def gradients(objective, params, x, keys):
    """Of the loss at each key, flat: (keys, weights); and the losses."""

    def one(key):
        loss, grad = jax.value_and_grad(lambda p: objective.loss(key, p, pattern.model, pattern.guide, x, num_pixels=x.shape[1]))(params)
        return loss, jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grad)])

    loss, grad = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=500))(keys)
    return np.asarray(loss, float), np.asarray(grad, float)


RIVALS = [
    (vip.objectives.DoublyReparameterized(5), 5),
    (RenyiELBO(alpha=0, num_particles=5), 5),
    (vip.objectives.StickingTheLanding(), 1),
    (Trace_ELBO(), 1),
]


@pytest.mark.parametrize(("rival", "size"), RIVALS, ids=["ours", "plain", "one draw, path", "one draw, plain"])
def test_loss_and_gradient_have_the_expectation_of_the_others(small, images, rng_key, z_bound, rival, size):
    """Over many keys, every weight of both networks. Two of the rivals differentiate the bound itself."""
    key_start, *keys = jax.random.split(rng_key, 3)
    params = start(images, key_start)
    found, known = (
        gradients(objective, params, images, jax.random.split(key, 10_000))
        for objective, key in zip((pattern.DoublyReparameterized(size), rival), keys, strict=True)
    )
    for ours, theirs in zip(found, known, strict=True):
        error = np.sqrt((ours.var(0, ddof=1) + theirs.var(0, ddof=1)) / len(ours))
        assert (np.abs(ours.mean(0) - theirs.mean(0)) <= z_bound(found[1].shape[1] + 1) * error + 1e-4).all()
    assert (np.abs(known[1].mean(0)) > 10 * error).sum() > 0.3 * len(error), "gradients lost in noise test nothing"


@pytest.fixture
def learned(small, rng_key):
    """Weights after a short training on all rows, where no single draw holds the weight."""
    x = pattern.data()["x"][:, [10, 20, 43]]
    return pattern.learn(rng_key, x, num_steps=300, objective=pattern.DoublyReparameterized(8), num_pixels=3)[0]


def test_the_encoder_s_signal_grows_as_the_root_of_the_draws(learned, images, rng_key):
    """Ratio of mean to sd of the encoder's gradient, K = 4 and K = 64; the plain gradient's is lost beside it (Rainforth et al. 2018)."""
    flags = {name: jax.tree.map(lambda v, name=name: jnp.full(v.shape, "encoder" in name), value) for name, value in learned.items()}
    encoder = np.asarray(jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(flags)]))

    def signal(objective, num=1000):
        _, grad = gradients(objective, learned, images, jax.random.split(rng_key, num))
        grad = grad[:, encoder]
        noise = grad.var(0, ddof=1).sum()
        return np.sqrt(max((grad.mean(0) ** 2).sum() - noise / num, 0.0) / noise)

    few, many = (signal(pattern.DoublyReparameterized(k)) for k in (4, 64))
    assert 3 < many / few < 5  # sqrt(64 / 4) = 4
    assert signal(RenyiELBO(alpha=0, num_particles=64)) < many / 10


def test_bounds_rise_to_log_p_by_quadrature(learned, images, rng_key, z_bound):
    params = learned
    grid = jnp.linspace(-9, 9, 4001)

    def joint(z):
        run = handlers.seed(handlers.substitute(pattern.model, {**params, "z": jnp.full((6, 1), z)}), 0)
        sites = handlers.trace(run).get_trace(images, num_pixels=3)
        return sites["z"]["fn"].log_prob(sites["z"]["value"]) + sites["x"]["fn"].log_prob(images)

    log_p = np.logaddexp.reduce(np.asarray(jax.lax.map(joint, grid), float), axis=0) + np.log(float(grid[1] - grid[0]))
    log_w = pattern.log_weights(rng_key, params, images, 10_240, 3)
    found = np.array([pattern.bound(log_w, size) for size in (1, 8, 64, 512)])
    assert (np.diff(found, axis=0) >= -1e-4).all()  # groups within groups: for every row, not on average alone
    w = np.exp(np.asarray(log_w, float) - log_p)
    assert (np.abs(w.mean(0) - 1) < z_bound(6) * w.std(0, ddof=1) / np.sqrt(len(w)) + 1e-3).all()
    # What is left, by the delta method: half the relative variance of the mean weight.
    gap, left = log_p - found[1], w.var(0) / 16
    error = np.array([pattern.bound(log_w[i::10], 8) for i in range(10)]).std(0, ddof=1) / np.sqrt(10)
    assert (np.abs(gap - left) < 6 * error + 0.3 * left + 1e-3).all()


@pytest.mark.slow
def test_held_out_digits_against_independent_pixels(rng_key, z_bound):
    key_fit, key_weights, key_split = jax.random.split(rng_key, 3)
    x = jax.random.permutation(key_split, jnp.asarray(pattern.data()["x"], jnp.float32))
    new, x = x[:180], x[180:]
    params, losses = pattern.learn(key_fit, x, num_steps=800, objective=pattern.DoublyReparameterized(8))
    log_w = pattern.log_weights(key_weights, params, new, 400)
    share = (x.sum(0) + 0.5) / (len(x) + 1)
    gain = pattern.bound(log_w, 400) - (new * jnp.log(share) + (1 - new) * jnp.log(1 - share)).sum(1)
    assert gain.mean() > z_bound() * gain.std(ddof=1) / np.sqrt(len(gain))
    assert losses.shape == (800,)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trained_by_its_own_settings_it_beats_the_rival(rng_key, z_bound):
    d = pattern.data()
    trained = vip.train(rng_key, pattern.model, pattern.guide, d, **pattern.training(), progress=False)
    new = trained.held_out["x"]
    rest = d["x"][~(d["x"][:, None] == new).all(-1).any(1)]
    share = (rest.sum(0) + 0.5) / (len(rest) + 1)
    rival = (new * np.log(share) + (1 - new) * np.log(1 - share)).sum(1)
    assert trained.elbo > rival.mean() + z_bound() * np.hypot(rival.std(ddof=1) / np.sqrt(len(new)), trained.held_out_mcse)
