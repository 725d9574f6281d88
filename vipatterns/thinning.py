"""Draws of q that were weighed, all of them or, where they are more than memory holds, a weighted sample of them.

Priority sampling: Duffield, Lund and Thorup 2007, Journal of the ACM 54(6), doi 10.1145/1314690.1314696. With u uniform, the n draws of the
largest w / u are kept. A draw is kept with probability min(1, w / c), c the largest w / u that was let go, and counts for its weight over
that probability, max(w, c): sums over what is kept are unbiased for sums over all. So they are draws of a better proposal than q,
proportional to min(q, p / c) (rejection control: Liu, Chen and Wong 1998, JASA 93(443), 1022), and are judged as such.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vipatterns import keys
from vipatterns.diagnosis import Weights


@dataclass(frozen=True)
class Drawn:
    """S draws of q with what is needed to weigh them, and their sites."""

    log_p: np.ndarray
    """(S,) unnormalised log target, nats."""
    log_q: np.ndarray
    """(S,) log density of q, nats."""
    values: dict[str, np.ndarray]
    """site -> (n, *shape), of the draws that are held: here of all, n = S."""

    @property
    def size(self) -> int:
        """Number of draws that were weighed, S."""
        return self.log_p.size

    def log_weights(self, weights: Weights) -> np.ndarray:
        """(n,) of the draws that are held, normalised, from the smoothed weights of all."""
        return weights.log_weights

    def log_densities(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """log_p and log_q of some of those that are held."""
        return {"log_p": self.log_p[chosen], "log_q": self.log_q[chosen]}

    def joined(self, more: "Drawn", num_components: int) -> "Drawn":
        """More draws beside these, each component's in one block."""

        def join(*pair):
            parts = [x.reshape(num_components, -1, *x.shape[1:]) for x in pair]
            return np.concatenate(parts, axis=1).reshape(-1, *pair[0].shape[1:])

        values = {k: join(v, more.values[k]) for k, v in self.values.items()}
        return Drawn(join(self.log_p, more.log_p), join(self.log_q, more.log_q), values)

    def thinned(self, rng: np.random.Generator, most_held: int) -> "Thinned":
        """A weighted sample of these.

        Args:
            rng: a generator.
            most_held: fewer than there are.
        """
        priority = self._priority(rng)
        order = np.argsort(-priority)  # what is NaN comes last
        held = np.sort(order[:most_held])
        values = {k: v[held] for k, v in self.values.items()}
        return Thinned(self.log_p, self.log_q, values, held, priority[held], float(priority[order[most_held]]))

    def _priority(self, rng: np.random.Generator) -> np.ndarray:
        """(S,) log of w / u; inf for a draw that must be seen whatever its weight."""
        priority = self.log_p - self.log_q + rng.exponential(size=self.size)  # minus the log of a uniform
        for v in self.values.values():  # NaN in some draws and not in others is to be seen; in all draws it is missing data
            known = np.isfinite(v.reshape(self.size, -1))
            priority[(~known & known.any(0)).any(1)] = np.inf
        return priority


@dataclass(frozen=True)
class Thinned(Drawn):
    """S draws of q of which a weighted sample is held."""

    held: np.ndarray
    """(n,) which draws these are."""
    priority: np.ndarray
    """(n,) log of w / u of these; inf for one that must be seen whatever its weight."""
    cut: float
    """Log of the largest w / u that was let go."""

    def thinned(self, rng: np.random.Generator, most_held: int) -> "Thinned":
        """This sample as it is: what it let go cannot be drawn from again."""
        return self

    def log_weights(self, weights: Weights) -> np.ndarray:
        """(n,) of the draws that are held, normalised, from the smoothed weights of all."""
        ratio = (self.log_p - self.log_q)[self.held]
        # Smoothing moves a weight, not the probability by which its draw was kept.
        log_kept = np.where(ratio < self.cut, ratio - self.cut, 0.0)
        log_weights = weights.log_weights[self.held] - log_kept
        return log_weights - np.logaddexp.reduce(log_weights)

    def log_densities(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """log_p and log_q of some of those that are held."""
        return super().log_densities(self.held[chosen])

    def extended(self, fresh: Callable, rng_key, number: int, *, batch: int) -> "Thinned":
        """The weighted sample, as large as this one, of these and of `number` more. It is written over this one, which is used up.

        Args:
            fresh: (rng_key, number) -> Drawn that holds all.
            rng_key: a JAX key.
            number: 1 or more.
            batch: draws that are made at once.
        """
        values, held, priority, cut, most_held = self.values, self.held, self.priority, self.cut, self.held.size
        log_p, log_q, size = [self.log_p], [self.log_q], self.size
        for i, start in enumerate(range(0, number, batch)):
            key_draw, key_keep = keys.split(keys.fold_in(rng_key, i))
            more = fresh(key_draw, min(batch, number - start))
            both = np.concatenate([priority, more._priority(keys.generator(key_keep))])
            order = np.argsort(-both)
            stays, cut = order[:most_held], max(cut, both[order[most_held]])
            # Into the places of those that go: memory that is taken anew for each batch is not given back.
            new, free = stays[stays >= most_held] - most_held, np.setdiff1d(np.arange(most_held), stays)
            for name, value in values.items():
                value[free] = more.values[name][new]
            held[free], priority[free] = size + new, both[most_held + new]
            log_p.append(more.log_p)
            log_q.append(more.log_q)
            size += more.size
        return Thinned(np.concatenate(log_p), np.concatenate(log_q), values, held, priority, float(cut))
