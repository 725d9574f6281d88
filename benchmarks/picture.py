"""Draws the README's picture: `python benchmarks/picture.py`, from the root of the repository, in about a minute."""

import jax

import vipatterns as vip
from vipatterns import plots
from vipatterns.patterns import eight_schools

if __name__ == "__main__":
    data = eight_schools.data()
    exact = eight_schools.exact_posterior(**data)
    methods = [vip.MeanField(), vip.Laplace(), vip.NUTS()]
    comparison = vip.compare(jax.random.key(0), eight_schools.model, data, reference=exact, methods=methods, progress=False)
    figure = plots.marginals(comparison, num=4)
    figure.savefig("tutorials/assets/comparison.png", dpi=110, facecolor="white", bbox_inches="tight")
    print(figure.alt)
