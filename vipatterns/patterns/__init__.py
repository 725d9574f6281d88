"""The catalogue: one file is one pattern. There is no registry; the listing of this folder is the list.

A pattern is a module that runs alone. It holds these functions. `args` are the arguments of its model, always passed
by keyword: `model(**data())`, `fit(rng_key, **data())`, `exact_posterior(**data())`.

`data(frame=None) -> dict`
    Argument name of the model -> NumPy array (or a static int). With a mapping name -> array given (a dict, a
    DataFrame), a column named as an argument goes to it, and where the model has an `x` the remaining numeric columns
    are stacked into it, (N, P), in their order.
`model(**args)`, `guide(**args)`
    The observed site is named as its argument, default None; every plate is named for what it indexes. A pattern
    without observed data (a funnel) has no such argument. The guide is written out by hand.
`fit(rng_key, **args, *, num_steps=...) -> (q, losses)`
    `q`: dict, site -> the fitted q of that site, on the site's own (constrained) scale: a numpyro Distribution, whose
    batch and event shape together are the shape of the site, or, where it has no closed-form mean and variance, draws
    (num, *shape of the site), or, where it is a point estimate, a Delta. Deterministic sites that matter are in it as draws.
    `losses`: (num_steps,), what was minimised, noisy unless the docstring says exact; for an ELBO its negative, for a point
    minus log p(data, point), which no log_evidence bounds.
`main()`
    Fits, and prints estimate beside exact or reference values.

And, where they exist:

`exact_posterior(**args) -> dict`
    Site -> numpyro Distribution, or draws (num, *shape) whose number the docstring states. Marginals, a site at a time,
    computed in float64.
`log_evidence(**args) -> float`
    log p(data) in nats, every constant included, so that ELBO <= log_evidence.
`documented_bias(**args) -> dict`
    Where the guide's family cannot contain the posterior: site -> (mean, sd) of the best q in the family, by the
    formula in its docstring, each broadcasting to the shape of the site; the sd of a point is 0. A fit is then held to
    this, and not to exact_posterior; where a pattern has both, the difference between them is the lesson. A site may be
    left out where no formula is known.
`training() -> dict`
    Of a pattern whose model has parameters of its own, such as a network's: the settings of `vip.train` (batch_size, num_epochs,
    patience, optimizer, objective, schedules) that `vipatterns fit` trains it with. Its latents stand in the plate of the rows.
"""
