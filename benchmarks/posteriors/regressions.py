"""Regressions: one plate of rows, measured in raw units, and as many ways as data scatter about a curve."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import log_expit, logsumexp

from posteriors.record import Posterior

N, Half = dist.Normal, dist.HalfNormal


def house_prices_data():
    """120 houses: price in dollars; area in square feet, bedrooms, age in years, distance to the centre in km."""
    rng = np.random.default_rng(101)
    area = rng.gamma(9, 200, 120).round()
    bedrooms = np.clip(np.round(area / 600 + rng.normal(0, 0.7, 120)), 1, 6)
    age, distance = rng.integers(0, 90, 120), rng.gamma(2, 6, 120).round(1)
    price = 90_000 + 145 * area + 8_000 * bedrooms - 900 * age - 3_500 * distance + 42_000 * rng.normal(size=120)
    return {"x": np.stack([area, bedrooms, age, distance], 1), "price": price.round(-2)}


HOUSE_SCALES = np.array([500_000.0, 500.0, 50_000.0, 5_000.0, 20_000.0])
HOUSE_NOISE = 50_000.0


def house_prices(x, price=None):
    variance = numpyro.sample("variance", dist.InverseGamma(2.0, HOUSE_NOISE**2))
    with numpyro.plate("coefficient", 5):
        beta = numpyro.sample("beta", N(0.0, HOUSE_SCALES / HOUSE_NOISE * jnp.sqrt(variance)))
    with numpyro.plate("house", len(x)):
        numpyro.sample("price", N(beta[0] + x @ beta[1:], jnp.sqrt(variance)), obs=price)


def house_prices_exact(x, price):
    """Normal-inverse-gamma: the variance is inverse-gamma and beta a Student-t."""
    X = np.column_stack([np.ones(len(x)), x])
    precision = np.diag((HOUSE_NOISE / HOUSE_SCALES) ** 2) + X.T @ X
    mean = np.linalg.solve(precision, X.T @ price)
    a = 2.0 + len(x) / 2
    b = HOUSE_NOISE**2 + (price @ price - mean @ precision @ mean) / 2
    variance = b / (a - 1)
    sds = np.sqrt(variance * np.diagonal(np.linalg.inv(precision)))
    return {"beta": (mean, sds), "variance": (variance, variance / np.sqrt(a - 2))}


def bioassay_data():
    """Racine, Grieve, Fluehler and Smith 1986, doi 10.2307/2347264: log dose (log g/ml), animals and deaths."""
    return {"dose": np.array([-0.86, -0.30, -0.05, 0.73]), "animals": np.array([5, 5, 5, 5]), "deaths": np.array([0, 1, 3, 5])}


def bioassay(dose, animals, deaths=None):
    alpha = numpyro.sample("alpha", N(0.0, 2.0))
    beta = numpyro.sample("beta", N(0.0, 10.0))
    with numpyro.plate("group", len(dose)):
        numpyro.sample("deaths", dist.Binomial(animals, logits=alpha + beta * dose), obs=deaths)


def bioassay_exact(dose, animals, deaths):
    """A grid in both: its sums are right to all digits, since everything vanishes at its ends."""
    alpha, beta = np.meshgrid(np.linspace(-9, 11, 2_001), np.linspace(-30, 70, 2_001), indexing="ij")
    log_p = -((alpha / 2) ** 2 + (beta / 10) ** 2) / 2
    for d, n, y in zip(dose, animals, deaths, strict=True):
        log_p += y * log_expit(alpha + beta * d) + (n - y) * log_expit(-alpha - beta * d)
    p = np.exp(log_p - logsumexp(log_p))

    def moments(v):
        mean = (p * v).sum()
        return mean, np.sqrt((p * (v - mean) ** 2).sum())

    return {"alpha": moments(alpha), "beta": moments(beta)}


def churn_data():
    """600 customers, 20 measurements on scales from thousandths to thousands, and whether they left within the year."""
    rng = np.random.default_rng(102)
    z = rng.normal(size=(600, 20))
    z[:, 1::2] = 0.5 * z[:, ::2] + np.sqrt(0.75) * z[:, 1::2]
    scale = 10.0 ** rng.integers(-3, 4, 20)
    slopes = rng.normal(0, 0.5, 20) * (rng.random(20) < 0.6)
    left = rng.random(600) < 1 / (1 + np.exp(1.2 - z @ slopes))
    return {"x": scale * (rng.normal(2, 1, 20) + z), "left": left.astype(int)}


def churn(x, left=None):
    mean, sd = x.mean(0), x.std(0)
    intercept = numpyro.sample("intercept", N(0.0, 2.5))
    with numpyro.plate("feature", x.shape[1]):
        slope = numpyro.sample("slope", N(0.0, 1.0 / sd))
    with numpyro.plate("customer", len(x)):
        numpyro.sample("left", dist.Bernoulli(logits=intercept + (x - mean) @ slope), obs=left)


def fire_claims_data():
    """60 districts: claims; insured sums in million euros (the exposure), age of the buildings in years, distance to a brigade in km."""
    rng = np.random.default_rng(103)
    insured, age, distance = rng.gamma(2, 40, 60).round(1), rng.integers(5, 110, 60), rng.gamma(3, 2, 60).round(1)
    rate = np.exp(-3.6 + 0.011 * age + 0.07 * distance)
    return {"insured": insured, "x": np.stack([age, distance], 1).astype(float), "claims": rng.poisson(insured * rate)}


def fire_claims(insured, x, claims=None):
    log_rate = numpyro.sample("log_rate", N(-3.0, 2.0))
    with numpyro.plate("feature", x.shape[1]):
        slope = numpyro.sample("slope", N(0.0, jnp.array([0.05, 0.5])))
    with numpyro.plate("district", len(insured)):
        numpyro.sample("claims", dist.Poisson(insured * jnp.exp(log_rate + x @ slope)), obs=claims)


def roaches_data():
    """150 flats: roaches caught; caught before, treated or not, senior home or not, trap-days."""
    rng = np.random.default_rng(104)
    before, treated, senior = rng.gamma(0.5, 80, 150).round(), rng.integers(0, 2, 150), rng.random(150) < 0.3
    days = rng.choice([0.6, 0.8, 1.0, 1.0, 1.0, 1.4], 150)
    mean = days * np.exp(2.8 + 0.011 * before - 0.75 * treated - 0.35 * senior)
    caught = rng.poisson(rng.gamma(0.45, mean / 0.45))
    return {"x": np.stack([before, treated, senior], 1).astype(float), "days": days, "caught": caught}


def roaches(x, days, caught=None):
    intercept = numpyro.sample("intercept", N(3.0, 2.0))
    with numpyro.plate("feature", x.shape[1]):
        slope = numpyro.sample("slope", N(0.0, jnp.array([0.05, 1.0, 1.0])))
    concentration = numpyro.sample("concentration", dist.HalfNormal(2.0))
    with numpyro.plate("flat", len(days)):
        numpyro.sample("caught", dist.NegativeBinomial2(days * jnp.exp(intercept + x @ slope), concentration), obs=caught)


def fuel_data():
    """60 journeys: litres burnt against km driven; every tenth note is a slip of the pen."""
    rng = np.random.default_rng(105)
    km = rng.gamma(3, 90, 60).round()
    litres = 1.5 + 0.064 * km + rng.normal(0, 1.2, 60)
    litres[::10] += rng.normal(0, 25, 6)
    return {"km": km, "litres": litres.round(1)}


def fuel(km, litres=None):
    start = numpyro.sample("start", N(0.0, 10.0))
    per_km = numpyro.sample("per_km", N(0.0, 0.5))
    scale = numpyro.sample("scale", Half(10.0))
    degrees = numpyro.sample("degrees", dist.Gamma(2.0, 0.1))
    with numpyro.plate("journey", len(km)):
        numpyro.sample("litres", dist.StudentT(degrees, start + per_km * km, scale), obs=litres)


def food_data():
    """90 households: food in euros a month against income in euros a month; the scatter grows with income."""
    rng = np.random.default_rng(106)
    income = rng.gamma(5, 520, 90).round()
    food = 120 + 0.14 * income + np.exp(2.6 + 0.0005 * income) * rng.normal(size=90)
    return {"income": income, "food": food.round(2)}


def food(income, food=None):
    start = numpyro.sample("start", N(0.0, 500.0))
    share = numpyro.sample("share", N(0.0, 0.5))
    log_sd = numpyro.sample("log_sd", N(3.0, 3.0))
    growth = numpyro.sample("growth", N(0.0, 0.002))
    with numpyro.plate("household", len(income)):
        numpyro.sample("food", N(start + share * income, jnp.exp(log_sd + growth * income)), obs=food)


def genes_data():
    """60 tumours: log survival against the expression of 30 genes, standardised, three of which matter."""
    rng = np.random.default_rng(107)
    x = rng.normal(size=(60, 30))
    x = (x - x.mean(0)) / x.std(0)
    y = 1.4 * x[:, 0] - 1.0 * x[:, 7] + 0.7 * x[:, 19] + rng.normal(size=60)
    return {"x": x, "y": y - y.mean()}


def genes(x, y=None):
    tau = numpyro.sample("tau", dist.HalfCauchy(3 / 27 / np.sqrt(len(x))))
    sigma = numpyro.sample("sigma", Half(2.0))
    with numpyro.plate("gene", x.shape[1]):
        local = numpyro.sample("local", dist.HalfCauchy(1.0))
        z = numpyro.sample("z", N(0.0, 1.0))
        slope = numpyro.deterministic("slope", tau * sigma * local * z)
    with numpyro.plate("tumour", len(x)):
        numpyro.sample("y", N(x @ slope, sigma), obs=y)


def satisfaction_data():
    """250 guests: stars from one to five (0 to 4 here) against minutes waited and the bill in euros."""
    rng = np.random.default_rng(108)
    waited, bill = rng.gamma(4, 5, 250).round(), rng.gamma(6, 8, 250).round(2)
    taste = -0.09 * waited - 0.02 * bill + rng.logistic(size=250)
    return {"x": np.stack([waited, bill], 1), "stars": np.digitize(taste, [-5.0, -3.8, -2.6, -1.0])}


def satisfaction(x, stars=None):
    with numpyro.plate("feature", x.shape[1]):
        slope = numpyro.sample("slope", N(0.0, 0.5))
    ordered = dist.TransformedDistribution(N(jnp.zeros(4), 5.0).to_event(1), dist.transforms.OrderedTransform())
    cuts = numpyro.sample("cuts", ordered)
    with numpyro.plate("guest", len(x)):
        numpyro.sample("stars", dist.OrderedLogistic((x - x.mean(0)) @ slope, cuts), obs=stars)


def pumps_data():
    """80 pumps: months until they failed, or until the study ended; load in kW and whether the water is salt."""
    rng = np.random.default_rng(109)
    load, salt = rng.gamma(8, 4, 80).round(1), rng.integers(0, 2, 80)
    life = np.exp(4.4 - 0.02 * load - 0.5 * salt) * rng.weibull(1.7, 80)
    end = rng.uniform(12, 60, 80)
    return {"x": np.stack([load, salt], 1).astype(float), "months": np.minimum(life, end).round(1) + 0.1, "failed": life < end}


def pumps(x, months, failed):
    log_scale = numpyro.sample("log_scale", N(4.0, 2.0))
    with numpyro.plate("feature", x.shape[1]):
        slope = numpyro.sample("slope", N(0.0, jnp.array([0.1, 1.0])))
    shape = numpyro.sample("shape", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("pump", len(months)):
        hazard = (months / jnp.exp(log_scale + (x - x.mean(0)) @ slope)) ** shape
        numpyro.factor("months", jnp.where(failed, jnp.log(shape * hazard / months), 0.0) - hazard)


def calves_data():
    """45 weighings of a calf: kg against days."""
    rng = np.random.default_rng(110)
    days = np.sort(rng.integers(0, 700, 45)).astype(float)
    kg = 620 / (1 + np.exp(-(days - 260) / 95)) * np.exp(0.04 * rng.normal(size=45))
    return {"days": days, "kg": kg.round(1)}


def calves(days, kg=None):
    grown = numpyro.sample("grown", N(500.0, 200.0))
    halfway = numpyro.sample("halfway", N(300.0, 150.0))
    pace = numpyro.sample("pace", dist.LogNormal(np.log(100.0), 0.7))
    sd = numpyro.sample("sd", Half(0.3))
    with numpyro.plate("weighing", len(days)):
        curve = jnp.log(jnp.maximum(grown, 1.0)) - jnp.log1p(jnp.exp(-(days - halfway) / pace))
        numpyro.sample("kg", dist.LogNormal(curve, sd), obs=kg)


def blood_pressure_data():
    """100 patients: systolic pressure (mmHg) against age (years) and weight (kg). 20 weights and 15 pressures are missing."""
    rng = np.random.default_rng(111)
    age = rng.integers(25, 80, 100).astype(float)
    kg = 60 + 0.25 * age + 11 * rng.normal(size=100)
    mmhg = 80 + 0.5 * age + 0.3 * kg + 9 * rng.normal(size=100)
    missing = rng.permutation(100)
    kg[missing[:20]] = np.nan
    mmhg[missing[15:30]] = np.nan
    at = np.flatnonzero(np.isnan(kg))
    return {"age": age, "kg": np.nan_to_num(kg), "at": at, "seen": ~np.isnan(mmhg), "mmhg": np.nan_to_num(mmhg)}


def blood_pressure(age, kg, at, seen, mmhg=None):
    weight = numpyro.sample("weight", N(75.0, 30.0))
    by_age = numpyro.sample("by_age", N(0.0, 1.0))
    spread = numpyro.sample("spread", Half(20.0))
    with numpyro.plate("unweighed", len(at)):
        unseen = numpyro.sample("unseen", N(weight + by_age * (age[at] - 50), spread))
    start = numpyro.sample("start", N(130.0, 40.0))
    with numpyro.plate("feature", 2):
        slope = numpyro.sample("slope", N(0.0, 2.0))
    sd = numpyro.sample("sd", Half(20.0))
    with numpyro.plate("patient", len(age)):
        with numpyro.handlers.mask(mask=jnp.ones(len(age), bool).at[at].set(False)):
            numpyro.sample("kg", N(weight + by_age * (age - 50), spread), obs=kg)
        full = jnp.asarray(kg).at[at].set(unseen)
        with numpyro.handlers.mask(mask=seen):
            numpyro.sample("mmhg", N(start + slope[0] * (age - 50) + slope[1] * (full - 75), sd), obs=mmhg)


CAREFUL = {"num_samples": 10_000, "target_accept_prob": 0.99}
POSTERIORS = [
    Posterior("house_prices", house_prices, house_prices_data, "linear regression, raw units, conjugate", house_prices_exact),
    Posterior("bioassay", bioassay, bioassay_data, "logistic regression on 20 animals", bioassay_exact),
    Posterior("churn", churn, churn_data, "logistic regression, 20 features on seven scales"),
    Posterior("fire_claims", fire_claims, fire_claims_data, "Poisson regression with exposures"),
    Posterior("roaches", roaches, roaches_data, "negative binomial regression with offsets"),
    Posterior("fuel", fuel, fuel_data, "robust regression, Student-t of unknown degrees of freedom"),
    Posterior("food", food, food_data, "heteroscedastic regression"),
    # A local scale's prior falls like its square and its likelihood to a constant over it: its sd does not exist.
    Posterior("genes", genes, genes_data, "horseshoe, 30 features on 60 rows", reference_settings=CAREFUL, without=("local",)),
    Posterior("satisfaction", satisfaction, satisfaction_data, "ordinal regression, cumulative logit"),
    Posterior("pumps", pumps, pumps_data, "Weibull survival, censored"),
    Posterior("calves", calves, calves_data, "logistic growth curve"),
    Posterior("blood_pressure", blood_pressure, blood_pressure_data, "regression with missing weights and pressures"),
]
