"""Amortised inference: one network gives q(z | x) for every datum; trained on minibatches, from data that may be larger than memory."""

from vipatterns.amortized.trained import Trained
from vipatterns.amortized.training import train

__all__ = ["Trained", "train"]
