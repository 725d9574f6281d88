"""What a trained model is worth and what it has learned, as one HTML file with figures; no request leaves it."""

from collections.abc import Callable
from contextlib import suppress
from html import escape
from pathlib import Path

import numpy as np

from vipatterns import keys, page
from vipatterns.amortized import pictures
from vipatterns.amortized.collapse import ActiveUnits, active_units
from vipatterns.amortized.likelihood import LogLikelihood, log_likelihood
from vipatterns.amortized.rows import number_of, rows_of
from vipatterns.amortized.trained import Trained
from vipatterns.draws import as_key
from vipatterns.errors import InputError
from vipatterns.plots import Picture

MOST_ROWS = 500
"""Held-out rows that the likelihood is measured on: each costs thousands of passes through the networks."""
MOST_UNITS = 40
"""Scalars in the table of units."""


def write(rng_key, trained: Trained, path: str | Path, *, rows: dict | None = None, labels=None, title: str = "", progress=None) -> None:
    """Measures and draws a trained model, and writes the page.

    Args:
        rng_key: a JAX key.
        trained: what `vip.train` returned.
        path: the file.
        rows: argument -> (N, ...), with `labels`: what the latent map and the interpolation show; by default the rows held out.
        labels: (N,), of those rows.
        title: of the page; by default the model's name.
        progress: None for automatic, True or False to force.

    Raises:
        InputError: the file cannot be written.
    """
    text = html(rng_key, trained, rows=rows, labels=labels, title=title, progress=progress)
    new = Path(path).with_name(f"{Path(path).name}.new")
    try:  # a report that was there is replaced whole, or stays
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise InputError(f"The report {path} cannot be written: {error.strerror}; make room, or name another file or folder.") from error


def html(rng_key, trained: Trained, *, rows: dict | None = None, labels=None, title: str = "", progress=None) -> str:
    """The whole page; arguments as of `write`."""
    key_likelihood, key_units, key_pictures = keys.split(as_key(rng_key), 3)
    held_out = {name: value[:MOST_ROWS] for name, value in rows_of(trained, None).items()}
    measured = log_likelihood(key_likelihood, trained, held_out, progress=progress)
    units = active_units(key_units, trained, held_out) if number_of(held_out) > 1 else None
    title = title or f"{trained.pair.model.__module__}.{trained.pair.model.__qualname__}"
    lead = f"log p(x) is {measured.mean:.3f} ± {measured.mean_error:.3f} nats a datum on {len(measured.log_p)} rows held out, "
    lead += f"{measured.bits_per_dim:.4f} bits per dimension."
    parts = [
        f"<h1>{escape(title)}: trained</h1>",
        f'<p class="lead">{escape(lead)}</p>',
        f"<p>{escape(measured.sentence)}</p>",
        *([f"<p>{escape(units.sentence)}</p>"] if units else []),
        f'<div class="scroll" role="region" aria-label="How it was trained" tabindex="0"><pre>{escape(repr(trained))}</pre></div>',
        "<h2>Held-out log likelihood</h2>",
        *_likelihood(trained, measured),
    ]
    with page.house_style():
        parts += ["<h2>Training</h2>", '<div class="square">', page.figure(pictures.training_curve(trained), "curve", CURVE), "</div>"]
        parts += _pictures(key_pictures, trained, rows, labels)
    parts += _units(units) if units else []
    return page.document(f"{title}: trained", [*parts, "<h2>How to read this</h2>", READING])


def _pictures(rng_key, trained: Trained, rows: dict | None, labels) -> list[str]:
    each = keys.split(rng_key, 5)
    shown: list[tuple[str, str, str, Callable[[], Picture]]] = [
        ("Reconstructions", "rec", "", lambda: pictures.reconstructions(each[0], trained)),
        ("Samples", "samples", SAMPLES, lambda: pictures.samples(each[1], trained)),
        ("Traversals", "walk", TRAVERSALS, lambda: pictures.traversals(each[2], trained)),
        ("Interpolation", "line", INTERPOLATION, lambda: pictures.interpolation(each[3], trained, rows, labels=labels)),
        ("Map of the codes", "map", MAP, lambda: pictures.latent_map(each[4], trained, rows, labels=labels)),
    ]
    parts, missing = [], {}
    for heading, prefix, caption, draw in shown:
        try:
            drawn = page.figure(draw(), prefix, caption)
        except InputError as error:
            missing.setdefault(str(error), []).append(heading)
            continue
        parts += [f"<h2>{heading}</h2>", f'<div class="{"square" if prefix == "map" else "wide"}">', drawn, "</div>"]
    return parts + [f'<p class="muted">{escape(", ".join(names))}: {escape(why)}</p>' for why, names in missing.items()]


def _likelihood(trained: Trained, measured: LogLikelihood) -> list[str]:
    num, total = len(measured.log_p), number_of(trained.held_out)
    bounds = {**measured.bounds, measured.num_samples: measured.log_p}
    to_bits = measured.bits_per_dim / measured.mean if measured.mean else 0.0
    lines = []
    for size, values in bounds.items():
        error = values.std(ddof=1) / np.sqrt(num) if num > 1 else np.nan
        cells = (f"{values.mean():.3f}", f"{error:.3f}", f"{values.mean() * to_bits:.4f}", f"{abs(error * to_bits):.4f}")
        name = f"K = {size:,}" + (", the ELBO" if size == 1 else "")
        lines.append(f'<tr><th scope="row" class="name">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    head = '<th scope="col" class="name">weights a datum</th>' + "".join(
        f'<th scope="col">{h}</th>' for h in ("nats a datum", "±", "bits per dimension", "±")
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    which = f"All {total} rows held out" if num == total else f"The first {num} of {total} rows held out"
    said = f"{which}; ± is the standard error over them. Of the last line, ± {measured.mean_mcse:.3f} nats are Monte Carlo error."
    return [page.scroll(table, "Held-out log likelihood"), f'<p class="muted">{said}</p>']


def _units(units: ActiveUnits) -> list[str]:
    table = units.table.sort_values("variance", ascending=False).head(MOST_UNITS)
    head = '<th scope="col" class="name">scalar</th>' + "".join(
        f'<th scope="col">{h}</th>' for h in ("variance of q's mean", "prior variance", "KL (nats)", "±", "active")
    )
    lines = [
        f'<tr><th scope="row" class="name">{escape(str(name))}</th>'
        + "".join(f"<td>{cell}</td>" for cell in (*map(_number, figures), "yes" if on else "no"))
        + "</tr>"
        for name, figures, on in zip(table.index, table[COLUMNS].to_numpy(float).tolist(), table.active, strict=True)
    ]
    which = f"The {len(table)} of {len(units.table)} scalars that vary most" if len(table) < len(units.table) else "All scalars"
    said = f"{which}. Together they take {units.kl:.3f} ± {units.kl_error:.3f} nats a datum from the prior to q."
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return ["<h2>Active units</h2>", f'<p class="muted">{said}</p>', page.scroll(body, "Active units")]


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4f}"


COLUMNS = ["variance", "prior_variance", "kl", "kl_error"]
CURVE = (
    "Higher is better. Rows held out lie below those trained on by what does not carry over; those trained on are measured while the "
    "weights change."
)
SAMPLES = "What the model makes of codes drawn from the prior, without pixel noise."
TRAVERSALS = "One scalar of the code runs from its 1 % to its 99 % quantile over data; the scalars that vary most stand above."
INTERPOLATION = "Data at both ends; between them the decoded codes on the line between theirs."
MAP = "Each point is the mean of q for a datum. Labels, where shown, were not trained on unless the model reads them."
READING = """<dl>
<dt>log p(x)</dt><dd>By importance sampling from the encoder. With K weights a datum it is a lower bound in expectation, which rises with
K to log p(x) itself; K = 1 is the ELBO.</dd>
<dt>bits per dimension</dt><dd>Minus log p(x) in bits, over the number of observed elements. Lower is better. Of continuous data it
depends on their unit and may be negative.</dd>
<dt>active</dt><dd>The mean of q varies over data by more than a hundredth of the prior's variance.</dd>
<dt>KL</dt><dd>From the prior to q, averaged over data: the most that a scalar can tell of a datum.</dd>
<dt>±</dt><dd>One standard error.</dd>
</dl>
<p><b>What the pictures cannot tell.</b> Sharp images are no proof of a good density, and a poor density may give sharp
images: compare log p(x).</p>"""
