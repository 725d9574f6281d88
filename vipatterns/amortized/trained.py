"""What training returns: the networks' parameters, and how they came about."""

import math
from dataclasses import dataclass, field

import jax
import numpy as np

from vipatterns.amortized.weights import Pair


@dataclass(frozen=True, eq=False, repr=False)
class Trained:
    """A trained model with its guide, at the epoch whose held-out ELBO was the highest."""

    pair: Pair
    """The model and the guide."""
    params: dict
    """numpyro.param site -> its value; the networks' are pytrees."""
    elbos: np.ndarray
    """(epoch,): minus the mean loss of its steps, nats a datum, on the rows that were trained on, while they changed."""
    held_out_elbos: np.ndarray
    """(epoch,): nats a datum of the rows held out, one draw each; the draws' noise is the same in every epoch."""
    held_out_mcse: float
    """Standard error of the best of them, over the rows and their draws."""
    held_out: dict[str, np.ndarray] = field(default_factory=dict)
    """The rows held out: argument -> (M, ...)."""
    num_steps: int = 0
    """Minibatches that were stepped on."""
    stopped_because: str = ""
    """Begins with converged, epoch budget, diverged or interrupted; then a sentence."""
    compile_seconds: float = 0.0
    """Wall time spent tracing and compiling."""
    run_seconds: float = 0.0
    """Wall time spent on everything else."""
    dtype: str = "float32"
    """What it was trained in."""
    not_saved: str = ""
    """Why the last checkpoint could not be written; empty where it was, or none was asked for."""

    @property
    def best_epoch(self) -> int:
        """The epoch of `params`, from 0."""
        return int(np.nanargmax(self.held_out_elbos)) if np.isfinite(self.held_out_elbos).any() else -1

    @property
    def elbo(self) -> float:
        """The held-out ELBO of `params`, nats a datum."""
        return float(self.held_out_elbos[self.best_epoch]) if self.best_epoch >= 0 else math.nan

    def __repr__(self) -> str:
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        rows = [
            ("trained", f"{self.pair.model.__module__}.{self.pair.model.__qualname__}, {size} parameters, {self.dtype}"),
            ("elbo", f"{self.elbo:.3f} ± {self.held_out_mcse:.3f} nats a datum on {len(next(iter(self.held_out.values())))} rows held out"),
            ("epochs", f"{len(self.elbos)}, the best is {self.best_epoch + 1}; {self.num_steps} steps"),
            ("seconds", f"{self.run_seconds:.1f} and {self.compile_seconds:.1f} of compiling"),
            ("stopped", self.stopped_because),
            *([("not saved", self.not_saved)] if self.not_saved else []),
        ]
        return "\n".join(f"{label:<11}{value}" for label, value in rows)
