"""Amortised inference: one network gives q(z | x) for every datum; trained on minibatches, from data that may be larger than memory."""

from vipatterns.amortized import images
from vipatterns.amortized.annealing import annealed_log_likelihood
from vipatterns.amortized.collapse import ActiveUnits, active_units
from vipatterns.amortized.files import ArrayFile, Parquet
from vipatterns.amortized.gaps import Gaps, gaps
from vipatterns.amortized.likelihood import LogLikelihood, log_likelihood
from vipatterns.amortized.reference import reference, with_networks
from vipatterns.amortized.trained import Trained
from vipatterns.amortized.training import train

__all__ = [
    "ActiveUnits",
    "ArrayFile",
    "Gaps",
    "LogLikelihood",
    "Parquet",
    "Trained",
    "active_units",
    "annealed_log_likelihood",
    "gaps",
    "images",
    "log_likelihood",
    "reference",
    "train",
    "with_networks",
]
