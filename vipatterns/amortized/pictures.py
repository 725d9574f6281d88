"""Pictures of what a trained model has learned. They are returned, never shown, and carry a text for those who cannot see them.

All stand on the means of q and of the observed site (`coding`), so that they show what the networks say and no pixel noise.
"""

import math

import matplotlib
import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle

from vipatterns import keys
from vipatterns.amortized.coding import Codes, decode, encode, imagine, observed, prior_codes
from vipatterns.amortized.collapse import THRESHOLD
from vipatterns.amortized.rows import number_of, rows_of
from vipatterns.amortized.trained import Trained
from vipatterns.errors import InputError
from vipatterns.plots import COLOURS, Picture, plain

MOST_TRAVERSALS = 10
MOST_LABELS = 12
"""More kinds of labels than these are shown by a scale of colours."""
MOST_POINTS = 3_000
FRAME = "#aab2bd"
"""Colour of the line around an image, without which paper on paper has no edge."""
GAP = 0.2
"""Between two images, in widths of one."""
INCHES = 0.52
"""The width of an image."""
EXTREMES = (0.01, 0.99)
"""Quantiles over data between which a traversal runs."""


def reconstructions(rng_key, trained: Trained, rows: dict | None = None, *, num: int = 12, image_shape=None) -> Picture:
    """Images, and below each what the decoder makes of its code.

    Args:
        rng_key: a JAX key.
        trained: what `vip.train` returned.
        rows: argument -> (N, ...); by default the rows held out.
        num: how many of them, drawn at random.
        image_shape: (height, width) or (height, width, colours) of what is observed; by default as it is, or square.
    """
    pick, code, back = keys.split(rng_key, 3)
    rows = rows_of(trained, rows)
    chosen = _some(pick, number_of(rows), num)
    few = {name: value[chosen] for name, value in rows.items()}
    look = Look(trained, image_shape)
    again = look(decode(back, trained, encode(code, trained, few), few))
    data = look(few[look.site])
    figure = _mosaic(look, [data, again], ["datum", "decoded"], columns=len(chosen))
    error = float(np.sqrt(((data - again) ** 2).mean()))
    figure.alt = (
        f"{len(chosen)} images above, and below each its reconstruction by the model: pixels differ by {error:.2g} on a scale from "
        f"{look.low:.3g} to {look.high:.3g} (root mean square)."
    )
    return figure


def samples(rng_key, trained: Trained, *, num: int = 48, columns: int = 12, image_shape=None) -> Picture:
    """Images at draws of the prior: the mean of the observed site, without its noise. Arguments as of `reconstructions`."""
    look = Look(trained, image_shape)
    images = look(imagine(rng_key, trained, num))
    figure = _mosaic(look, [images[i : i + columns] for i in range(0, num, columns)], columns=min(num, columns))
    figure.alt = f"{num} images that the model makes of codes drawn from the prior."
    return figure


def traversals(rng_key, trained: Trained, rows: dict | None = None, *, num: int = 12, dims=None, image_shape=None) -> Picture:
    """A row for each active scalar of the code, which runs through its range over data; the others stay at a typical datum's.

    Args:
        rng_key, trained, rows, image_shape: as of `reconstructions`.
        num: steps of each row.
        dims: names of the scalars, such as z[3]; by default those that vary most, at most `MOST_TRAVERSALS`.
    """
    code, again, back, prior = keys.split(rng_key, 4)
    rows = rows_of(trained, rows)
    codes = encode(code, trained, rows)
    chosen = active(prior, trained, codes)[:MOST_TRAVERSALS] if dims is None else [_index(codes, name) for name in dims]
    chosen = chosen or list(range(min(len(codes.names), MOST_TRAVERSALS)))
    look = Look(trained, image_shape)
    off = (look(decode(again, trained, codes, rows)) - look(rows[look.site])).reshape(len(codes.values), -1)
    base = typical(codes.values, (off**2).sum(1))
    walk, ends = walked(codes.values, base, chosen, num)
    one = {name: np.repeat(value[base : base + 1], len(chosen) * num, axis=0) for name, value in rows.items()}
    images = look(decode(back, trained, codes.replaced(walk.reshape(-1, walk.shape[-1])), one))
    named = [codes.names[k] for k in chosen]
    figure = _mosaic(look, list(images.reshape(len(chosen), num, *images.shape[1:])), named, columns=num)
    runs = ", ".join(f"{name} from {low:.2f} to {high:.2f}" for name, low, high in zip(named, *ends, strict=True))
    figure.alt = f"Images along {len(chosen)} of {len(codes.names)} scalars of the code, a row each, the others held at a datum's: {runs}."
    return figure


def interpolation(rng_key, trained: Trained, rows: dict | None = None, *, pairs: int = 4, num: int = 10, labels=None, image_shape=None):
    """Two data in each row, at its ends, and between them what the decoder makes of codes on the straight line between theirs.

    Args:
        rng_key, trained, rows, image_shape: as of `reconstructions`.
        pairs: rows of the picture.
        num: steps, the codes of both data among them.
        labels: (N,), of the rows: the two data of a pair then have different ones.
    """
    pick, code, back = keys.split(rng_key, 3)
    rows = rows_of(trained, rows)
    ends = _pairs(pick, number_of(rows), pairs, labels)
    if not len(ends):
        raise InputError("An interpolation needs two rows or more.")
    look = Look(trained, image_shape)
    few = [{name: value[ends[:, side]] for name, value in rows.items()} for side in range(2)]
    first, last = (encode(code, trained, part) for part in few)
    share = np.linspace(0, 1, num)[None, :, None]
    walk = (1 - share) * first.values[:, None] + share * last.values[:, None]
    along = {name: np.repeat(value, num, axis=0) for name, value in few[0].items()}
    images = look(decode(back, trained, first.replaced(walk.reshape(-1, walk.shape[-1])), along)).reshape(
        len(ends), num, *look(few[0][look.site]).shape[1:]
    )
    left, right = (look(part[look.site]) for part in few)
    rows_of_images = [np.concatenate([left[i : i + 1], images[i], right[i : i + 1]]) for i in range(len(ends))]
    figure = _mosaic(look, rows_of_images, columns=num + 2, apart=(0, num))
    figure.alt = (
        f"{len(ends)} rows: a datum at either end, and between them {num} images decoded from the straight line between their codes."
    )
    return figure


def walked(values: np.ndarray, base: int, chosen: list[int], num: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (len(chosen), num, K) that run along each chosen scalar from the one of `EXTREMES` to the other, the rest as datum `base` has
    them; and both ends, (2, len(chosen))."""
    ends = np.quantile(values[:, chosen], EXTREMES, axis=0)
    walk = np.tile(values[base], (len(chosen), num, 1))
    for r, k in enumerate(chosen):
        walk[r, :, k] = np.linspace(ends[0, r], ends[1, r], num)
    return walk, ends


def typical(values: np.ndarray, errors: np.ndarray) -> int:
    """The datum nearest to the middle of the codes (N, K), among the third that is decoded best: the middle itself often lies between two
    kinds of images, and the best of all is often a plain one."""
    off = (((values - np.median(values, axis=0)) / np.maximum(values.std(0), 1e-12)) ** 2).sum(1)
    return int(np.where(errors <= np.quantile(errors, 1 / 3), off, np.inf).argmin())


def latent_map(rng_key, trained: Trained, rows: dict | None = None, *, labels=None) -> Picture:
    """Codes of data in the plane, coloured by label: as they are where they have two scalars, else by their principal components.

    Args:
        rng_key: a JAX key.
        trained: what `vip.train` returned.
        rows: argument -> (N, ...); by default the rows held out.
        labels: (N,), of the rows: names, whole numbers or a scale.
    """
    code, pick = keys.split(rng_key)
    rows = rows_of(trained, rows)
    labels = None if labels is None else np.asarray(labels)
    if labels is not None and labels.shape != (number_of(rows),):
        raise InputError(f"labels must be one for each of the {number_of(rows)} rows, got shape {labels.shape}.")
    chosen = _some(pick, number_of(rows), MOST_POINTS)
    codes = encode(code, trained, {name: value[chosen] for name, value in rows.items()})
    points, axis_names, said = flattened(codes)
    figure = Picture(figsize=(6.0, 4.6), layout="constrained")
    axes = figure.subplots()
    kinds = None if labels is None else np.unique(labels[chosen])
    if labels is None or kinds is None:
        axes.plot(*points.T, ".", color=COLOURS[0], markersize=4, markeredgewidth=0, alpha=0.6, rasterized=True)
        told = "without labels"
    elif len(kinds) > MOST_LABELS:
        drawn = axes.scatter(*points.T, c=labels[chosen].astype(float), s=9, linewidths=0, alpha=0.8, cmap="viridis", rasterized=True)
        figure.colorbar(drawn, ax=axes, label="label")
        told = f"coloured by label, {kinds[0]} to {kinds[-1]}"
    else:
        palette = matplotlib.colormaps["tab20" if len(kinds) > 10 else "tab10"].colors  # pyright: ignore[reportAttributeAccessIssue]
        for kind, colour in zip(kinds, palette, strict=False):
            here = points[labels[chosen] == kind]
            axes.plot(*here.T, ".", color=colour, markersize=5, markeredgewidth=0, alpha=0.55, rasterized=True)
            # A label stands where its points are thickest, so that the colours need not be told apart.
            across, up = (float(value) for value in np.median(here, axis=0))
            box = {"facecolor": "white", "edgecolor": colour, "alpha": 0.85, "boxstyle": "round,pad=0.2"}
            axes.text(across, up, plain(str(kind)), ha="center", va="center", fontsize="small", color="#1b1f24", bbox=box)
        told = f"coloured by label: {', '.join(str(kind) for kind in kinds)}"
    axes.set(xlabel=plain(axis_names[0]), ylabel=plain(axis_names[1]))
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)
    figure.alt = f"{said} of {len(points)} data, {told}."
    return figure


def flattened(codes: Codes) -> tuple[np.ndarray, list[str], str]:
    """Codes as points in the plane, (N, 2), the names of the axes, and what they are."""
    values, names = codes.values, codes.names
    if values.shape[1] == 1:
        rank = values[:, 0].argsort().argsort()
        return np.column_stack([values[:, 0], rank]), [names[0], "rank"], f"The code {names[0]} against its rank"
    if values.shape[1] == 2:
        return values, names, f"Codes, {names[0]} against {names[1]},"
    centred = values - values.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    share = sizes**2 / max((sizes**2).sum(), 1e-300)
    titles = [f"principal component {i + 1} of the codes ({share[i]:.0%} of their variance)" for i in range(2)]
    return centred @ directions[:2].T, titles, f"The first two principal components of the codes, {share[:2].sum():.0%} of their variance,"


def training_curve(trained: Trained) -> Picture:
    """ELBO a datum by epoch: of the rows that were trained on, and of those held out."""
    figure = Picture(figsize=(6.0, 3.2), layout="constrained")
    axes = figure.subplots()
    epochs = np.arange(1, len(trained.held_out_elbos) + 1)
    axes.plot(epochs[: len(trained.elbos)], trained.elbos[: len(epochs)], color=COLOURS[0], linewidth=1.4, label="trained on")
    axes.plot(epochs, trained.held_out_elbos, color=COLOURS[1], linestyle="--", linewidth=1.4, label="held out")
    axes.plot(trained.best_epoch + 1, trained.elbo, "o", color=COLOURS[1], label=f"kept: epoch {trained.best_epoch + 1}")
    late = np.concatenate([trained.elbos[len(trained.elbos) // 10 :], trained.held_out_elbos[len(epochs) // 10 :]])
    late = late[np.isfinite(late)]
    if len(late) > 20:
        pad = 0.1 * max(np.ptp(late), 1e-6)
        axes.set_ylim(late.min() - pad, late.max() + pad)  # the first epochs are far below: the axis belongs to the others
    axes.set(xlabel="epoch", ylabel="ELBO (nats a datum)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.alt = (
        f"ELBO by epoch, nats a datum. On rows held out it is highest in epoch {trained.best_epoch + 1} of {len(epochs)}, "
        f"{trained.elbo:.2f}; on those trained on it ends at {trained.elbos[-1]:.2f}."
    )
    return figure


def active(rng_key, trained: Trained, codes: Codes, num: int = 1_000) -> list[int]:
    """Scalars whose mean varies over data by more than `collapse.THRESHOLD` of the prior's variance, those that vary most first."""
    variance, prior = codes.values.var(0), prior_codes(rng_key, trained, num).values.var(0)
    share = variance / np.maximum(prior, 1e-300)
    return [int(k) for k in np.argsort(-share, kind="stable") if share[k] > THRESHOLD]


class Look:
    """How the observed site is made an image: its shape, and the ends of the scale.

    Raises:
        InputError: it is none, and `image_shape` does not say how it becomes one.
    """

    def __init__(self, trained: Trained, image_shape=None):
        self.site = observed(trained)
        values = trained.held_out.get(self.site)
        if values is None:
            raise InputError(f"No argument is called {self.site!r} as what the model observes is: there is no datum to set beside.")
        self.shape = image_shape_of(values.shape[1:]) if image_shape is None else tuple(image_shape)
        if self.shape is None or math.prod(self.shape) != math.prod(values.shape[1:]):
            raise InputError(
                f"Rows of {self.site!r} have shape {values.shape[1:]}, which is no image of shape {self.shape or '(height, width)'}: "
                "give image_shape=(height, width)."
            )
        inside = values.min() >= 0 and values.max() <= 1
        self.low, self.high = (0.0, 1.0) if inside else (float(values.min()), float(values.max()))
        # Ink is dark where most of an image is paper; a photograph stays as it is.
        self.colours = "Greys" if np.mean(values) < self.low + 0.4 * (self.high - self.low) else "gray"

    def __call__(self, values) -> np.ndarray:
        """(N, ...) -> (N, height, width) or (N, height, width, 3)."""
        assert self.shape is not None
        return np.reshape(np.asarray(values, float), (-1, *self.shape))

    def painted(self, image: np.ndarray) -> np.ndarray:
        """(height, width, 4), from 0 to 1."""
        scaled = np.clip((image - self.low) / max(self.high - self.low, 1e-12), 0, 1)
        if scaled.ndim == 3 and scaled.shape[-1] == 3:
            return np.concatenate([scaled, np.ones((*scaled.shape[:2], 1))], axis=-1)
        return matplotlib.colormaps[self.colours](scaled.reshape(scaled.shape[:2]))


def image_shape_of(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Of an observed value's shape: (height, width), colours last; None where it is no image."""
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3)):
        return shape
    side = math.isqrt(shape[0]) if len(shape) == 1 else 0
    return (side, side) if len(shape) == 1 and side > 1 and side * side == shape[0] else None


def _mosaic(look: Look, rows: list[np.ndarray], names: list[str] | None = None, *, columns: int, apart: tuple[int, ...] = ()) -> Picture:
    """Rows of images side by side; after the columns `apart` the gap is wider."""
    assert look.shape is not None
    height, width = look.shape[:2]
    # One image is painted by blocks, so that no viewer blurs its pixels.
    zoom = max(1, math.ceil(64 / max(height, width)))
    gap = round(GAP * width * zoom)
    gaps = [gap * (4 if i in apart else 1) for i in range(columns)]
    lefts = np.concatenate([[0], np.cumsum([width * zoom + g for g in gaps])]).astype(int)
    step = height * zoom + gap
    canvas = np.zeros((len(rows) * step - gap, int(lefts[columns]) - gaps[-1], 4))
    for r, images in enumerate(rows):
        for c, image in enumerate(images):
            block = np.kron(look.painted(image), np.ones((zoom, zoom, 1)))
            canvas[r * step : r * step + block.shape[0], lefts[c] : lefts[c] + block.shape[1]] = block
    margin = 0.85 if names else 0.0
    scale = INCHES / (width * zoom)
    size = canvas.shape[1] * scale + margin, canvas.shape[0] * scale
    figure = Picture(figsize=(size[0] + 0.1, size[1] + 0.1))
    axes = figure.add_axes(
        ((margin + 0.05) / (size[0] + 0.1), 0.05 / (size[1] + 0.1), (size[0] - margin) / (size[0] + 0.1), size[1] / (size[1] + 0.1))
    )
    axes.imshow(canvas, interpolation="none", aspect="auto")
    axes.set_axis_off()
    wide, high = width * zoom, height * zoom
    corners = [(lefts[c] - 0.5, r * step - 0.5) for r, images in enumerate(rows) for c in range(len(images))]
    frames = PatchCollection([Rectangle(corner, wide, high) for corner in corners], facecolor="none", edgecolor=FRAME, linewidth=0.6)
    frames.set_clip_on(False)
    axes.add_collection(frames, autolim=False)
    for r, name in enumerate(names or []):
        axes.text(-gap, r * step + height * zoom / 2, plain(name), ha="right", va="center", fontsize="medium")
    return figure


def _some(rng_key, num: int, most: int) -> np.ndarray:
    return np.sort(keys.generator(rng_key).permutation(num)[:most])


def _index(codes: Codes, name: str) -> int:
    if name not in codes.names:
        raise InputError(f"There is no scalar {name!r} of the code: it has {', '.join(codes.names[:12])}.")
    return codes.names.index(name)


def _pairs(rng_key, num: int, pairs: int, labels) -> np.ndarray:
    """(pairs, 2): rows, none twice; of different labels where they are known and there are such."""
    order = list(keys.generator(rng_key).permutation(num))
    found = []
    while len(order) > 1 and len(found) < pairs:
        first = order.pop(0)
        other = next((i for i in order if labels is not None and labels[i] != labels[first]), order[0])
        order.remove(other)
        found.append((first, other))
    return np.array(found, int).reshape(-1, 2)
