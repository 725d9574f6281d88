"""Variational-inference patterns on NumPyro, and one comparison that tells whether VI can stand in for NUTS.

Every name is imported when it is first used: `import vipatterns` costs nothing and touches no setting of JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vipatterns import amortized, objectives
    from vipatterns.amortized.trained import Trained
    from vipatterns.amortized.training import train
    from vipatterns.archive import load
    from vipatterns.calibration import Calibration, calibrate
    from vipatterns.comparison import Comparison, compare
    from vipatterns.errors import InputError
    from vipatterns.methods import fit
    from vipatterns.methods.adaptive import IMIS
    from vipatterns.methods.dadvi import DADVI
    from vipatterns.methods.flow import Flow
    from vipatterns.methods.full_rank import FullRank
    from vipatterns.methods.guide import Guide
    from vipatterns.methods.ladder import Ladder
    from vipatterns.methods.laplace import Laplace
    from vipatterns.methods.low_rank import LowRank
    from vipatterns.methods.mean_field import MeanField
    from vipatterns.methods.nuts import NUTS
    from vipatterns.methods.pathfinder import Pathfinder
    from vipatterns.posterior import Certificate, Fit
    from vipatterns.prediction import prior_predictive

_ROOMS = {
    "Calibration": "calibration",
    "Certificate": "posterior",
    "Comparison": "comparison",
    "DADVI": "methods.dadvi",
    "Fit": "posterior",
    "Flow": "methods.flow",
    "FullRank": "methods.full_rank",
    "Guide": "methods.guide",
    "IMIS": "methods.adaptive",
    "InputError": "errors",
    "Ladder": "methods.ladder",
    "Laplace": "methods.laplace",
    "LowRank": "methods.low_rank",
    "MeanField": "methods.mean_field",
    "NUTS": "methods.nuts",
    "Pathfinder": "methods.pathfinder",
    "Trained": "amortized.trained",
    "calibrate": "calibration",
    "compare": "comparison",
    "fit": "methods",
    "load": "archive",
    "prior_predictive": "prediction",
    "train": "amortized.training",
}
"""Where each name that users type lives; a test holds it equal to the imports above."""

_FOLDERS = ("amortized", "objectives")
"""Rooms that users name as such: `vip.objectives.ScoreFunction`, `vip.amortized.log_likelihood`."""

__all__ = [  # noqa: RUF022  in the order of _ROOMS
    "Calibration",
    "Certificate",
    "Comparison",
    "DADVI",
    "Fit",
    "Flow",
    "FullRank",
    "Guide",
    "IMIS",
    "InputError",
    "Ladder",
    "Laplace",
    "LowRank",
    "MeanField",
    "NUTS",
    "Pathfinder",
    "Trained",
    "amortized",
    "calibrate",
    "compare",
    "fit",
    "load",
    "objectives",
    "prior_predictive",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _FOLDERS:
        return import_module(f"vipatterns.{name}")
    if name not in _ROOMS:
        raise AttributeError(f"vipatterns has no name {name!r}; it has {', '.join([*_ROOMS, *_FOLDERS])}")
    value = globals()[name] = getattr(import_module(f"vipatterns.{_ROOMS[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*_ROOMS, *_FOLDERS, "__version__"]
