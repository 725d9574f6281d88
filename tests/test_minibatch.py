"""Minibatches: log p of random rows is unbiased for log p of all, its gradient too, and what would not be is refused."""

import importlib
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density
from scipy.stats import t

import vipatterns as vip
from vipatterns import density, minibatch, mode, patterns
from vipatterns.errors import InputError
from vipatterns.patterns import linear_regression

FILES = sorted(pathlib.Path(patterns.__file__).parent.glob("[!_]*.py"))
PATTERNS = [path.stem for path in FILES if "\ndef training(" not in path.read_text(encoding="utf-8")]
"""Without those whose models are trained: they have parameters, and no density of theirs alone."""
RNG = np.random.default_rng(0)
ROWS = {"x": RNG.normal(size=(9, 2)), "y": RNG.normal(2.0, 1.5, 9)}
GROUPED = {**ROWS, "group": np.array([0, 1, 2, 0, 1, 2, 2, 2, 0]), "num_groups": 3}


def line(x):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 5.0))
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
    return intercept + x @ slopes


def plain(x, y=None):
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    mean = line(x)
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


def subsampled(x, y=None):
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with numpyro.plate("row", len(x), subsample_size=4):
        mean = numpyro.subsample(x, event_dim=1) @ slopes
        numpyro.sample("y", dist.Normal(mean, sigma), obs=numpyro.subsample(y, event_dim=0))


def subsampled_by_index(x, y=None):
    mean = line(x)
    with numpyro.plate("row", len(x), subsample_size=2) as index:
        numpyro.sample("y", dist.Normal(mean[index], 1.0), obs=y[index])


def masked(x, y=None):
    mean = line(x)
    with numpyro.plate("row", len(x)), numpyro.handlers.mask(mask=x[:, 0] > -0.3):
        numpyro.sample("y", dist.StudentT(4.0, mean, 1.0), obs=y)


def scaled(x, y=None):
    mean = line(x)
    with numpyro.handlers.scale(scale=0.3), numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def factored(x, y=None):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    mean = level + line(x)
    with numpyro.plate("row", len(x)):
        numpyro.factor("y", -jnp.abs(y - mean))
        numpyro.sample("again", dist.Laplace(mean, 2.0), obs=y)
    numpyro.factor("outside", -jnp.square(level))


def grouped(x, group, num_groups, y=None):
    with numpyro.plate("group", num_groups):
        level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    mean = line(x)
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(level[group] + mean, 1.0), obs=y)


def nested(y=None):
    """Rows by columns; the columns hold a latent, the rows none."""
    with numpyro.plate("column", y.shape[1], dim=-1):
        mean = numpyro.sample("mean", dist.Normal(0.0, 3.0))
        with numpyro.plate("row", y.shape[0], dim=-2):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def two_tables(y=None, other=None):
    """A second data plate, which always stays whole."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 3.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
    with numpyro.plate("other_row", len(other)):
        numpyro.sample("other", dist.Normal(2 * mean, 1.0), obs=other)


def mixture(y=None):
    with numpyro.plate("component", 2):
        mean = numpyro.sample("mean", dist.Normal(0.0, 3.0))
    with numpyro.plate("row", len(y)):
        label = numpyro.sample("label", dist.Categorical(probs=jnp.array([0.3, 0.7])), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(mean[label], 1.0), obs=y)


def mixture_subsampled(y=None):
    with numpyro.plate("component", 2):
        mean = numpyro.sample("mean", dist.Normal(0.0, 3.0))
    with numpyro.plate("row", len(y), subsample_size=3):
        label = numpyro.sample("label", dist.Categorical(probs=jnp.array([0.3, 0.7])), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(mean[label], 1.0), obs=numpyro.subsample(y, event_dim=0))


Y = {"y": ROWS["y"]}
MODELS = {
    "plain": (plain, ROWS),
    "subsampled": (subsampled, ROWS),
    "subsampled_by_index": (subsampled_by_index, ROWS),
    "masked": (masked, ROWS),
    "scaled": (scaled, ROWS),
    "factored": (factored, ROWS),
    "grouped": (grouped, GROUPED),
    "nested": (nested, {"y": RNG.normal(size=(9, 3))}),
    "two_tables": (two_tables, {**Y, "other": RNG.normal(size=5)}),
    "mixture": (mixture, Y),
    "mixture_subsampled": (mixture_subsampled, Y),
}

HARD = {"masked", "factored"}
"""Rows of a Student t, whose slopes turn round within an sd of so few rows, and absolute deviations, whose slopes jump."""


def data_plates(target):
    """Sizes of the plates of observed sites that hold no latents."""
    held = {name for site in target.latents.values() for name, _ in site.plates}
    return [size for site in target.observations.values() for name, size in site.plates if name not in held]


def grows(pattern, size, dim):
    """Whether the pattern has fewer latents with half the rows: a time series has no rows to draw from."""
    half = {k: v[: size // 2] if np.ndim(v) and len(v) == size else v for k, v in pattern.data().items()}
    return density.read(pattern.model, half).dim < dim


def leans(pattern, size, dim):
    """Whether log p of two halves of the rows depends on which halves: each row is then told given others, as in a Gaussian process."""
    z = 0.1 * np.ones(dim)

    def of(rows):
        part = {k: np.asarray(v)[rows] if np.ndim(v) and len(v) == size else v for k, v in pattern.data().items()}
        target = density.read(pattern.model, part)
        return float(target.log_p(z, target.arrays))

    rows = np.arange(size // 2 * 2)
    return not np.isclose(of(rows[: size // 2]) + of(rows[size // 2 :]), of(rows[::2]) + of(rows[1::2]), rtol=1e-8)


def of_batches(target, estimate, batches):
    """Gradient and value at a point near the prior's centre: of all rows (D + 1,), and of each batch (M, D + 1); `batches` are keys."""

    @jax.jit
    def program(batches, arrays):
        z = target.prior_centre(arrays) + 0.3 * jax.random.normal(jax.random.key(7), (target.dim,), dtype=target.dtype)

        def both(function):
            value, gradient = jax.value_and_grad(function)(z)
            return jnp.append(gradient, value)

        whole = both(lambda z: target.log_p(z, arrays))
        return whole, jax.lax.map(lambda batch: both(lambda z: estimate(z, batch, arrays)), batches, batch_size=64)

    whole, parts = program(batches, target.arrays)
    assert np.isfinite(whole).all()
    assert np.isfinite(parts).all()
    return np.asarray(whole), np.asarray(parts)


def mean_of(monkeypatch, target, batch_size, batches):
    """Of all rows, and the mean over `batches` (M, batch_size), rows that are taken in place of random ones."""
    estimate, _ = minibatch.log_p(target, batch_size)
    monkeypatch.setattr(minibatch, "random_rows", lambda rows, size, batch_size: rows)
    whole, parts = of_batches(target, estimate, jnp.asarray(batches))
    assert parts.std(0).max() > 1e-3 * np.abs(parts).max(), "the batches differ"
    return whole, parts.mean(0), np.abs(parts).max(0)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_s_minibatch_gradient_is_unbiased(name, monkeypatch):
    """Over batches that hold every row equally often, the mean gradient is the full one; a pattern without rows to draw is refused."""
    pattern = importlib.import_module(f"vipatterns.patterns.{name}")
    with density.precision("float64"):
        target = density.read(pattern.model, pattern.data())
        size = max(data_plates(target), default=0)
        if size == 0 or grows(pattern, size, target.dim) or leans(pattern, size, target.dim):
            with pytest.raises(InputError, match="cannot be taken" if size else "the model has none"):
                minibatch.log_p(target, 1)
            return
        batch_size = max(1, size // 3)
        cyclic = (np.arange(size)[:, None] + np.arange(batch_size)) % size
        whole, mean, scale = mean_of(monkeypatch, target, batch_size, cyclic)
    assert (np.abs(mean - whole) <= 1e-10 * scale).all()


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", MODELS)
def test_the_mean_over_all_minibatches_is_the_whole(name, batch_size, monkeypatch):
    model, data = MODELS[name]
    with density.precision("float64"):
        whole, mean, scale = mean_of(monkeypatch, density.read(model, data), batch_size, list(itertools.combinations(range(9), batch_size)))
    assert (np.abs(mean - whole) <= 1e-12 * scale).all()


@pytest.mark.parametrize("name", ["plain", "subsampled", "mixture"])
def test_random_rows_are_drawn_evenly(name, rng_key, z_bound):
    """With the rows that it draws by itself, to Monte Carlo error."""
    model, data = MODELS[name]
    with density.precision("float64"):
        target = density.read(model, data)
        estimate, num_data = minibatch.log_p(target, 2)
        whole, parts = of_batches(target, estimate, jax.random.split(rng_key, 20_000))
    assert num_data == target.num_data * 2 // 9
    assert len(np.unique(parts[:, -1].round(10))) == 36  # pairs of nine rows, none of one row twice
    error = np.abs(parts.mean(0) - whole) / (parts.std(0, ddof=1) / np.sqrt(len(parts)))
    assert (error < z_bound(whole.size)).all()


@pytest.mark.parametrize("name", MODELS)
def test_what_steadies_a_minibatch_does_not_move_it(name, monkeypatch):
    """Over all batches the mean is the whole, near the point where the rows' slopes are known and away from it; and the noise is less."""
    model, data = MODELS[name]
    with density.precision("float64"):
        target = density.read(model, data)
        start = mode.find(jax.random.key(0), target, density.Clock())
        estimate, _ = minibatch.log_p(target, 3)
        steady = minibatch.steadied(estimate, minibatch.centre(start.derivatives, start.loc))
        monkeypatch.setattr(minibatch, "random_rows", lambda rows, size, batch_size: rows)
        batches = jnp.asarray(list(itertools.combinations(range(9), 3)))
        for away in (0.1, 3.0):
            z = jnp.asarray(start.loc + mode.scaled(start.factor, away * np.ones(target.dim) / np.sqrt(target.dim)))

            def of_a_batch(batch, function, z=z):
                value, gradient = jax.value_and_grad(function)(z, batch, target.arrays)
                return jnp.append(gradient, value)

            whole, plain, less = (
                jax.lax.map(jax.jit(lambda batch, f=f: of_a_batch(batch, f)), batches)
                for f in (lambda z, batch, arrays: target.log_p(z, arrays), estimate, steady)
            )
            np.testing.assert_allclose(less.mean(0), whole[0], atol=1e-11 * float(abs(less).max()))
            if away < 1 and name not in HARD:
                assert (less.std(0) < 0.5 * plain.std(0) + 1e-12).all()


@pytest.mark.slow
def test_minibatches_of_many_rows_converge(rng_key):
    """Of 20,000 rows in raw units, 100 a step; it fails where the rows' slopes at the centre are not taken off."""
    rng = np.random.default_rng(0)
    x = np.c_[np.ones(20_000), rng.normal(size=(20_000, 4)) * [1, 30, 0.1, 5]]

    def model(x, y=None):
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 10.0).expand([5]).to_event(1))
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Bernoulli(logits=x @ slopes), obs=y)

    y = (rng.uniform(size=20_000) < 1 / (1 + np.exp(-x @ [0.3, 1.0, -0.02, 3.0, 0.1]))).astype(float)
    fit = vip.FullRank(batch_size=100).fit(rng_key, model, {"x": x, "y": y}, progress=False)
    assert fit.stopped_because.startswith("converged")
    assert fit.num_steps < 5_000
    assert fit.certificate.ok, fit.certificate.verdict


def test_all_rows_are_no_minibatch():
    with density.precision("float64"):
        for batch_size, num_rows in [(None, 9), (9, 9), (1, 1)]:
            target = density.read(plain, {name: values[:num_rows] for name, values in ROWS.items()})
            estimate, num_data = minibatch.log_p(target, batch_size)
            whole, parts = of_batches(target, estimate, jax.random.split(jax.random.key(0), 3))
            assert num_data == target.num_data
            np.testing.assert_allclose(parts, np.broadcast_to(whole, parts.shape), rtol=1e-12)


def no_plate(y=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mean, 1.0).expand([9]).to_event(1), obs=y)


def latents_in_the_plate(y=None):
    with numpyro.plate("row", len(y)):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def rows_on_the_second_axis(y=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", y.shape[1]):
        numpyro.sample("y", dist.Normal(mean, 1.0).expand([2]).to_event(1), obs=y.T)


def rows_that_are_no_argument():
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 9):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=jnp.asarray(ROWS["y"]))


def a_size_that_is_fixed(y=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 9):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def centred_by_the_rows(x, y=None):
    mean = line(x - x.mean(0))
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def a_walk_along_the_rows(y=None):
    walk = numpyro.sample("walk", dist.GaussianRandomWalk(1.0, 9))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(walk, 1.0), obs=y)


NO_PLATE, NOT_TAKEN = "the model has none", "Rows of plate 'row' cannot be taken from this model"
REFUSED = {
    "no_plate": (no_plate, Y, NO_PLATE),
    "latents_in_the_plate": (latents_in_the_plate, Y, NO_PLATE),
    "rows_on_the_second_axis": (rows_on_the_second_axis, {"y": RNG.normal(size=(2, 9))}, NOT_TAKEN),
    "rows_that_are_no_argument": (rows_that_are_no_argument, {}, NOT_TAKEN),
    "a_size_that_is_fixed": (a_size_that_is_fixed, Y, NOT_TAKEN),
    "centred_by_the_rows": (centred_by_the_rows, ROWS, NOT_TAKEN),
    "a_walk_along_the_rows": (a_walk_along_the_rows, Y, NOT_TAKEN),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_biased_is_refused(name, dtype):
    model, data, sentence = REFUSED[name]
    with density.precision(dtype):
        target = density.read(model, data, dtype=dtype)
        with pytest.raises(InputError, match=sentence) as refused:
            minibatch.log_p(target, 3)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", MODELS)
def test_single_precision_refuses_none_of_the_others(name):
    with density.precision("float32"):
        assert minibatch.log_p(density.read(*MODELS[name], dtype="float32"), 3)


@pytest.mark.parametrize("batch_size", [0, -3, 10])
def test_batches_have_a_size(batch_size):
    with pytest.raises(InputError, match=f"batch_size must be between 1 and the 9 rows of plate 'row', got {batch_size}"):
        vip.MeanField(batch_size=batch_size).fit(jax.random.key(0), *MODELS["plain"])


@pytest.fixture(scope="session", params=[vip.MeanField, *(pytest.param(m, marks=pytest.mark.slow) for m in (vip.FullRank, vip.LowRank))])
def fit(request, rng_key):
    """A fit of linear_regression from 20 of its 100 rows a step; its restarts differ by the noise of the minibatches."""
    method = request.param(batch_size=20, num_restarts=32, num_particles=4, num_steps=8_000)
    return method.fit(rng_key, linear_regression.model, linear_regression.data())


def test_a_minibatch_fit_reaches_the_full_data_answer(fit, false_alarm):
    """Means and log sds of q, over restarts, against those of the best q for all rows; Student's t, since the spread is estimated."""
    data = linear_regression.data()
    loc, precision, _ = linear_regression.gaussian(**data)
    sd = np.diag(precision) ** -0.5 if fit.name == "MeanField" else np.diag(np.linalg.inv(precision)) ** 0.5
    draws = fit.idata["proposal"]
    z = np.concatenate([draws["intercept"].values[..., None], draws["slopes"].values], -1)
    errors = np.concatenate([(z.mean(1) - loc) / sd, np.log(z.std(1, ddof=1) / sd)], 1)  # (restart, 8)
    standard_error = errors.std(0, ddof=1) / np.sqrt(len(errors))
    assert len(errors) > 24
    assert (standard_error < 0.03).all(), "the test can see something"
    assert (np.abs(errors.mean(0)) < t.isf(false_alarm / (2 * errors.shape[1]), len(errors) - 1) * standard_error).all()


def test_a_minibatch_fit_is_weighed_with_all_rows(fit, z_bound):
    data = linear_regression.data()
    draws = {name: fit.idata["proposal"][name].values[:, ::500] for name in ("intercept", "slopes")}
    with density.precision("float64"):
        values = jax.vmap(jax.vmap(lambda site: log_density(linear_regression.model, (), data, site)[0]))(draws)
    np.testing.assert_allclose(fit.idata["proposal_stats"]["log_p"].values[:, ::500], values, rtol=1e-9)
    if fit.name != "MeanField":  # whose weights have no finite variance here
        c = fit.certificate
        assert c.ok
        assert abs(c.log_evidence - linear_regression.log_evidence(**data)) < z_bound() * c.log_evidence_mcse
