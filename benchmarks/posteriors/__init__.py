"""The posteriors of accuracy.py: written for it, in raw units, each with an exact or a long-run reference."""

from posteriors import hierarchical, regressions, series
from posteriors.record import Posterior

ALL: dict[str, Posterior] = {p.name: p for p in [*regressions.POSTERIORS, *hierarchical.POSTERIORS, *series.POSTERIORS]}
