"""What SVI minimises: one file is one estimator, a numpyro.infer.ELBO for numpyro.infer.SVI and for `vip.Guide(objective=...)`.

`ScoreFunction` and `StickingTheLanding` estimate the ELBO's gradient, `DoublyReparameterized` that of the importance-weighted bound,
`ForwardKL` that of the opposite divergence. Rényi's bound is NumPyro's own RenyiELBO, and its Trace_ELBO, TraceMeanField_ELBO and
TraceEnum_ELBO work as they are. Its TraceGraph_ELBO is biased where a draw that has no reparameterised sampler is scaled, masked or
subsampled (tests/upstream_tracegraph_elbo.md); `ScoreFunction` with reparameterize=True does that work.
"""

from vipatterns.objectives.doubly_reparameterized import DoublyReparameterized
from vipatterns.objectives.forward_kl import ForwardKL
from vipatterns.objectives.score_function import ScoreFunction
from vipatterns.objectives.sticking_the_landing import StickingTheLanding

__all__ = ["DoublyReparameterized", "ForwardKL", "ScoreFunction", "StickingTheLanding"]
