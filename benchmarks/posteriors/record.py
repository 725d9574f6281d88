"""What a posterior of the benchmark is."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Posterior:
    """A model, its data, and how its exact moments or its reference run come about."""

    name: str
    model: Callable
    data: Callable
    """() -> argument of the model -> value; the same at every call."""
    about: str
    """What it is, in a few words."""
    exact: Callable | None = None
    """(data) -> site -> (means, sds), closed form or quadrature."""
    reference_settings: dict = field(default_factory=dict)
    """Of `vip.NUTS`, beside the script's."""
    without: tuple[str, ...] = ()
    """Sites that are not compared: their mean or sd does not exist."""
