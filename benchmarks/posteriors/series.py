"""Series, curves and mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from posteriors.record import Posterior

N, Half = dist.Normal, dist.HalfNormal


def temperature_data():
    """35 readings of a lake's temperature in degrees Celsius, by day of the year."""
    rng = np.random.default_rng(301)
    day = np.sort(rng.choice(365, 35, replace=False)).astype(float)
    celsius = 11 - 8 * np.cos(2 * np.pi * (day - 35) / 365) + 1.2 * np.sin(day / 17) + 0.6 * rng.normal(size=35)
    return {"day": day, "celsius": celsius.round(1)}


def temperature(day, celsius=None):
    """A Gaussian process, itself integrated out."""
    mean = numpyro.sample("mean", N(10.0, 5.0))
    amplitude = numpyro.sample("amplitude", Half(10.0))
    length = numpyro.sample("length", dist.InverseGamma(3.0, 100.0))
    noise = numpyro.sample("noise", Half(2.0))
    distance = day[:, None] - day
    cov = amplitude**2 * jnp.exp(-0.5 * (distance / length) ** 2) + (noise**2 + 1e-6) * jnp.eye(len(day))
    numpyro.sample("celsius", dist.MultivariateNormal(mean, cov), obs=celsius)


def hares_data():
    """90 years of pelts, in thousands."""
    rng = np.random.default_rng(302)
    x = np.zeros(140)
    for t in range(2, 140):
        x[t] = 1.35 * x[t - 1] - 0.75 * x[t - 2] + 0.35 * rng.normal()
    return {"pelts": np.exp(3 + x[50:]).round(2)}


def hares(pelts):
    """An autoregression of order two in logs, given the first two years."""
    log_pelts = jnp.log(pelts)
    level = numpyro.sample("level", N(3.0, 2.0))
    with numpyro.plate("lag", 2):
        phi = numpyro.sample("phi", N(0.0, 1.0))
    sd = numpyro.sample("sd", Half(1.0))
    x = log_pelts - level
    with numpyro.plate("year", len(pelts) - 2):
        numpyro.sample("log_pelts", N(level + phi[0] * x[1:-1] + phi[1] * x[:-2], sd), obs=log_pelts[2:])


def river_data():
    """60 years of a river's discharge, in 1e8 cubic metres."""
    rng = np.random.default_rng(303)
    level = 1_000 + np.cumsum(35 * rng.normal(size=60))
    return {"num_years": 60, "discharge": (level + 110 * rng.normal(size=60)).round()}


def river(num_years, discharge=None):
    """A local level: a random walk under noise, its steps in units of their sd."""
    first = numpyro.sample("first", N(1_000.0, 300.0))
    walk_sd, sd = numpyro.sample("walk_sd", Half(100.0)), numpyro.sample("sd", Half(300.0))
    with numpyro.plate("step", num_years - 1):
        z = numpyro.sample("z", N(0.0, 1.0))

    def step(level, z):
        return (level := level + walk_sd * z), level

    levels = numpyro.deterministic("levels", jnp.append(first, jax.lax.scan(step, first, z)[1]))
    with numpyro.plate("year", num_years):
        numpyro.sample("discharge", N(levels, sd), obs=discharge)


def returns_data():
    """80 weeks of a share's returns, in percent."""
    rng = np.random.default_rng(304)
    h = np.zeros(80)
    for t in range(1, 80):
        h[t] = 0.9 * h[t - 1] + 0.35 * rng.normal()
    return {"num_weeks": 80, "percent": (1.8 * np.exp(h / 2) * rng.normal(size=80)).round(2)}


def returns(num_weeks, percent=None):
    """Stochastic volatility: the log variance is an autoregression, its shocks in units of their sd."""
    log_sd = numpyro.sample("log_sd", N(0.0, 1.0))
    stays = numpyro.sample("stays", dist.Beta(20.0, 3.0))
    shock = numpyro.sample("shock", Half(0.5))
    with numpyro.plate("week_", num_weeks):
        z = numpyro.sample("z", N(0.0, 1.0))

    def step(h, z):
        return (h := stays * h + shock * z), h

    _, h = jax.lax.scan(step, shock / jnp.sqrt(1 - stays**2) * z[0] / stays, z.at[0].set(0.0))
    with numpyro.plate("week", num_weeks):
        numpyro.sample("percent", N(0.0, jnp.exp(log_sd + h / 2)), obs=percent)


def geyser_data():
    """120 waits between eruptions, in minutes."""
    rng = np.random.default_rng(305)
    return {"minutes": np.where(rng.random(120) < 0.36, rng.normal(55, 6, 120), rng.normal(80, 6.5, 120)).round()}


def geyser(minutes):
    """Two normals, in order. Were their sds free to be zero, one of them could close on a single wait and the posterior be improper."""
    short = numpyro.sample("short", dist.Beta(2.0, 2.0))
    first_and_log_gap = N(jnp.array([60.0, 3.0]), jnp.array([20.0, 1.0])).to_event(1)
    ordered = dist.TransformedDistribution(first_and_log_gap, dist.transforms.OrderedTransform())
    means = numpyro.sample("means", ordered)
    with numpyro.plate("kind", 2):
        sds = numpyro.sample("sds", dist.LogNormal(2.0, 0.5))
    weights = dist.Categorical(probs=jnp.stack([short, 1 - short]))
    with numpyro.plate("wait", len(minutes)):
        numpyro.sample("minutes", dist.MixtureSameFamily(weights, N(means, sds)), obs=minutes)


def anglers_data():
    """150 parties: fish caught; people, children, and whether they brought a camper. Some did not fish."""
    rng = np.random.default_rng(306)
    people, camper = rng.integers(1, 5, 150), rng.integers(0, 2, 150)
    children = rng.integers(0, people)
    fished = rng.random(150) > 1 / (1 + np.exp(0.8 - 1.1 * children))
    return {
        "x": np.stack([people, children, camper], 1).astype(float),
        "fish": fished * rng.poisson(np.exp(-0.4 + 0.5 * people - 0.6 * children)),
    }


def anglers(x, fish=None):
    intercept, idle = numpyro.sample("intercept", N(0.0, 3.0)), numpyro.sample("idle", N(0.0, 3.0))
    with numpyro.plate("feature", 3):
        slope = numpyro.sample("slope", N(0.0, 2.0))
    by_children = numpyro.sample("by_children", N(0.0, 2.0))
    with numpyro.plate("party", len(x)):
        caught = dist.Poisson(jnp.exp(intercept + x @ slope))
        numpyro.sample("fish", dist.ZeroInflatedDistribution(caught, gate_logits=idle + by_children * x[:, 1]), obs=fish)


def growth_data():
    """A culture's cells (millions per ml) at 24 hours, in two media."""
    rng = np.random.default_rng(307)
    hours, medium = np.tile(np.arange(0, 48, 4.0), 2), np.repeat([0, 1], 12)
    cells = 9 * np.exp(-np.exp(np.array([0.9, 1.3])[medium] - np.array([0.14, 0.10])[medium] * hours))
    return {"hours": hours, "medium": medium, "cells": (cells * np.exp(0.08 * rng.normal(size=24))).round(3)}


def growth(hours, medium, cells=None):
    """Gompertz curves: a ceiling that both share, a delay and a rate of each."""
    ceiling = numpyro.sample("ceiling", dist.LogNormal(2.0, 0.5))
    sd = numpyro.sample("sd", Half(0.3))
    with numpyro.plate("medium_", 2):
        delay = numpyro.sample("delay", N(1.0, 1.0))
        rate = numpyro.sample("rate", dist.LogNormal(-2.0, 0.7))
    with numpyro.plate("sample", len(hours)):
        curve = jnp.log(ceiling) - jnp.exp(delay[medium] - rate[medium] * hours)
        numpyro.sample("cells", dist.LogNormal(curve, sd), obs=cells)


CAREFUL = {"num_samples": 20_000, "target_accept_prob": 0.99}
POSTERIORS = [
    Posterior("temperature", temperature, temperature_data, "Gaussian process regression, its hyperparameters"),
    Posterior("hares", hares, hares_data, "autoregression of order two"),
    Posterior("river", river, river_data, "local level, 60 years", reference_settings={"num_samples": 10_000}),
    Posterior("returns", returns, returns_data, "stochastic volatility, 80 weeks", reference_settings=CAREFUL),
    Posterior("geyser", geyser, geyser_data, "mixture of two normals, ordered", reference_settings={"num_samples": 60_000}),
    Posterior("anglers", anglers, anglers_data, "zero-inflated Poisson regression", reference_settings={"num_samples": 20_000}),
    Posterior("growth", growth, growth_data, "Gompertz curves in two media"),
]
