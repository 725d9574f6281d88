"""Heating: a model of one's own, with groups, a table in raw units, and gaps in it.

What do floor area and wall insulation do to the energy that a home is heated with, district by district? The table, heating.csv, is
simulated (`simulate` below, seed 1): no survey stands behind it. Every third insulation is unknown, some meters were not read.

    vipatterns compare examples/heating.py --data examples/heating.csv --index district --target kwh --allow-missing

Columns go to the arguments of their names. `--index district` codes the districts 0, 1, ... and counts them in `num_districts`;
their names stay on the results. `--target kwh` says what is explained. `--allow-missing` lets the empty cells through, as NaN.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd


def model(district, num_districts, area, insulation, kwh=None):
    """Energy for heating, on the scale of the table; a prior says what is known of such homes before any is measured.

    Args:
        district: (N,) number of each home's district.
        num_districts: how many there are.
        area: (N,) heated floor area, square metres.
        insulation: (N,) thickness of the wall's insulation, cm; NaN where unknown.
        kwh: (N,) energy for heating in a year, kWh; NaN where the meter was not read.
    """
    ordinary = numpyro.sample("ordinary", dist.Normal(15_000, 5_000))  # kWh of a home of 100 m2 with 10 cm
    between = numpyro.sample("between", dist.HalfNormal(3_000))  # sd of the districts, kWh
    per_m2 = numpyro.sample("per_m2", dist.Normal(100, 100))
    per_cm = numpyro.sample("per_cm", dist.Normal(0, 500))
    noise = numpyro.sample("noise", dist.HalfNormal(5_000))
    usual = numpyro.sample("usual", dist.Normal(10, 5))  # cm
    spread = numpyro.sample("spread", dist.HalfNormal(5))  # cm

    # The plate takes the name of the index, so that results are labelled by district.
    with numpyro.plate("district", num_districts):
        level = numpyro.sample("level", dist.Normal(ordinary, between))

    known, read = ~jnp.isnan(insulation), True if kwh is None else ~jnp.isnan(kwh)
    with numpyro.plate("home", len(area)):
        # A gap in what explains. Where the thickness is unknown it is Normal(usual, spread), and summed out: its mean goes into the mean
        # of kwh, its spread into the noise. (To have draws of it, give `numpyro.sample` obs_mask=known instead: a latent for each home.)
        with numpyro.handlers.mask(mask=known):
            numpyro.sample("cm", dist.Normal(usual, spread), obs=jnp.nan_to_num(insulation))
        cm = jnp.where(known, insulation, usual)
        sd = jnp.hypot(noise, jnp.where(known, 0.0, per_cm * spread))
        mean = level[district] + per_m2 * (area - 100) + per_cm * (cm - 10)
        # A gap in what is explained: masked, it counts for nothing. Without kwh, as for a prediction, nothing is masked.
        with numpyro.handlers.mask(mask=read):
            numpyro.sample("kwh", dist.Normal(mean, sd), obs=None if kwh is None else jnp.nan_to_num(kwh))


def simulate(seed=1, num_homes=240):
    """The table."""
    rng = np.random.default_rng(seed)
    names = ["Abbey", "Brook", "Castle", "Docks", "Elms", "Ferry", "Grange", "Heath"]
    names += ["Isle", "Kiln", "Lock", "Mill", "Orchard", "Quarry", "Station", "Weir"]
    share = np.linspace(1, 4, len(names)) / np.linspace(1, 4, len(names)).sum()
    district = rng.choice(len(names), num_homes, p=share)
    area = rng.gamma(8, 13, num_homes).round()
    insulation = rng.normal(11, 4, num_homes).clip(1).round()
    level = rng.normal(14_500, 1_800, len(names))
    kwh = (level[district] + 85 * (area - 100) - 330 * (insulation - 10) + rng.normal(0, 2_000, num_homes)).round(-1)
    insulation[rng.random(num_homes) < 0.35] = np.nan
    kwh[rng.random(num_homes) < 0.05] = np.nan
    table = pd.DataFrame({"district": np.array(names)[district], "area": area, "insulation": insulation, "kwh": kwh})
    return table.astype({"area": "Int64", "insulation": "Int64", "kwh": "Int64"})


if __name__ == "__main__":
    simulate().to_csv("heating.csv", index=False)
