"""Pictures and the page of a trained model: on a linear decoder every mean has a closed form."""

import re

import exact_vae
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from vipatterns import keys
from vipatterns.amortized import coding, pictures, report
from vipatterns.errors import InputError
from vipatterns.plots import Picture

NUM, FEW = 40, 4


@pytest.fixture(scope="module")
def linear():
    return exact_vae.correlated()


@pytest.fixture(scope="module")
def trained(linear):
    """Four columns, two by two pixels; the guide is the posterior."""
    return linear.trained(linear.rows(np.random.default_rng(0), NUM))


def canvas(figure):
    return np.asarray(figure.axes[0].images[0].get_array())


def test_encode_is_the_mean_of_q_and_decode_the_mean_of_x(rng_key, linear, trained):
    x = trained.held_out["x"]
    codes = coding.encode(rng_key, trained)
    assert codes.names == ["z[0]", "z[1]"]
    np.testing.assert_allclose(codes.values, linear.posterior(x)[0], rtol=1e-10)
    z = np.random.default_rng(1).standard_normal((7, 2))
    np.testing.assert_allclose(coding.decode(rng_key, trained, codes.replaced(z)), z @ linear.weights.T + linear.offset, rtol=1e-10)


def test_blocks_of_rows_make_no_difference(rng_key, trained, monkeypatch):
    codes = coding.encode(rng_key, trained).values
    monkeypatch.setattr(coding, "BLOCK", 7)
    np.testing.assert_allclose(coding.encode(rng_key, trained).values, codes, rtol=1e-12)


def test_images_of_the_prior_are_means_without_noise(rng_key, linear, trained):
    """They lie in the plane of the loadings, where their moments are the prior's."""
    images = coding.imagine(rng_key, trained, 300)
    z, residual, *_ = np.linalg.lstsq(linear.weights, (images - linear.offset).T)
    assert residual.max() < 1e-20
    assert len(np.unique(z[0])) == 300


def test_latents_that_depend_on_others_are_taken_at_their_means(rng_key):
    def model(x):
        with numpyro.plate("row", len(x)):
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            b = numpyro.sample("b", dist.LogNormal(a, 1.0))
            numpyro.sample("x", dist.Normal(jnp.stack([a, b], -1), 1.0).to_event(1), obs=x)

    def guide(x):
        with numpyro.plate("row", len(x)):
            a = numpyro.sample("a", dist.Normal(x[:, 0] / 2, 0.5))
            numpyro.sample("b", dist.LogNormal(a + x[:, 1], 0.3))

    x = np.random.default_rng(0).standard_normal((5, 2))
    trained = exact_vae.trained(model, guide, {"x": x})
    codes = coding.encode(rng_key, trained).sites()
    np.testing.assert_allclose(codes["a"], x[:, 0] / 2)
    np.testing.assert_allclose(codes["b"], np.exp(x[:, 0] / 2 + x[:, 1] + 0.3**2 / 2), rtol=1e-6)


def test_draws_stand_for_a_mean_that_q_cannot_say(rng_key, linear, z_bound):
    def guide(x):
        with numpyro.plate("row", len(x)):
            base = dist.Normal(jnp.zeros((len(x), 2)), 1.0).to_event(1)
            numpyro.sample("z", dist.TransformedDistribution(base, dist.transforms.AffineTransform(x[:, :2], 0.5)))

    x = linear.rows(np.random.default_rng(0), 10)
    codes = coding.encode(rng_key, exact_vae.trained(linear.model, guide, {"x": x}))
    error = np.abs(codes.values - x[:, :2]) / (0.5 / np.sqrt(coding.NUM_DRAWS))
    assert (error < z_bound(error.size)).all()


def test_reconstructions_stand_below_their_data(rng_key, linear, trained):
    figure = pictures.reconstructions(rng_key, trained, num=NUM)
    look = pictures.Look(trained)
    means = linear.posterior(trained.held_out["x"])[0] @ linear.weights.T + linear.offset
    for row, values in enumerate((trained.held_out["x"], means)):
        image, painted = look(values)[0], canvas(figure)
        zoom = 32
        top = row * (2 * zoom + round(pictures.GAP * 2 * zoom))
        np.testing.assert_allclose(painted[top + zoom // 2 : top + 2 * zoom : zoom, zoom // 2 : 2 * zoom : zoom], look.painted(image))
    error = np.sqrt(((trained.held_out["x"] - means) ** 2).mean())
    assert f"{NUM} images" in figure.alt
    assert f"differ by {error:.2g}" in figure.alt


def test_samples_fill_their_rows(rng_key, trained):
    figure = pictures.samples(rng_key, trained, num=10, columns=4)
    painted = canvas(figure)[16::77, 16::77, 3]  # a point in each image: 64 wide, 13 apart
    np.testing.assert_array_equal(painted, [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]])
    assert figure.alt.startswith("10 images")


def test_a_traversal_moves_one_scalar_through_its_range(rng_key, trained):
    values = coding.encode(rng_key, trained).values
    walk, ends = pictures.walked(values, 3, [1], 5)
    np.testing.assert_array_equal(walk[0, :, 0], values[3, 0])
    np.testing.assert_allclose(walk[0, :, 1], np.linspace(*np.quantile(values[:, 1], [0.01, 0.99]), 5))
    figure = pictures.traversals(rng_key, trained, num=5, dims=["z[1]"])
    assert f"z[1] from {ends[0, 0]:.2f} to {ends[1, 0]:.2f}" in figure.alt
    assert [text.get_text() for text in figure.axes[0].texts] == ["z[1]"]


def test_idle_scalars_are_not_traversed(rng_key):
    linear = exact_vae.Linear(np.array([[1.5, 0.0], [-1.0, 0.0], [0.5, 0.0], [1.0, 0.0]]), np.zeros(4), 0.5)
    trained = linear.trained(linear.rows(np.random.default_rng(0), NUM))
    assert pictures.active(rng_key, trained, coding.encode(rng_key, trained)) == [0]
    assert "along 1 of 2 scalars" in pictures.traversals(rng_key, trained, num=3).alt


def test_a_typical_datum_is_in_the_middle_and_decoded_well():
    values, errors = np.array([[0.0], [0.1], [5.0], [-5.0], [0.3], [9.0]]), np.array([9.0, 1.0, 0.0, 3.0, 4.0, 5.0])
    assert pictures.typical(values, errors) == 1


def test_an_interpolation_is_between_data_of_different_labels(rng_key, trained):
    labels = np.arange(NUM) % 2
    figure = pictures.interpolation(rng_key, trained, pairs=3, num=4, labels=labels)
    assert figure.alt.startswith("3 rows")
    found = pictures._pairs(rng_key, NUM, 10, labels)
    assert len(np.unique(found)) == 20
    assert (labels[found[:, 0]] != labels[found[:, 1]]).all()


def test_the_map_shows_two_scalars_as_they_are_and_more_by_principal_components(rng_key, trained):
    codes = coding.encode(rng_key, trained)
    points, names, _ = pictures.flattened(codes)
    np.testing.assert_array_equal(points, codes.values)
    assert names == codes.names
    more = coding.Codes(np.random.default_rng(0).standard_normal((50, 5)) * [1, 5, 1, 3, 1], {"z": (5,)})
    points, names, _ = pictures.flattened(more)
    variances = np.linalg.eigvalsh(np.cov(more.values.T))[::-1]
    np.testing.assert_allclose(np.cov(points.T), np.diag(variances[:2]), atol=1e-10)
    assert f"({variances[0] / variances.sum():.0%} of their variance)" in names[0]


@pytest.mark.parametrize("labels", [None, np.arange(NUM) % 3, np.arange(NUM) / 7, np.array(["a$", "b"] * (NUM // 2))])
def test_the_map_takes_any_labels(rng_key, trained, labels):
    figure = pictures.latent_map(rng_key, trained, labels=labels)
    assert isinstance(figure, Picture)
    assert f"of {NUM} data" in figure.alt
    figure.canvas.draw()


def test_what_is_no_image_is_refused_in_a_sentence(rng_key):
    linear = exact_vae.orthogonal()
    trained = linear.trained(linear.rows(np.random.default_rng(0), NUM))
    with pytest.raises(InputError, match=re.escape("(6,), which is no image")):
        pictures.samples(rng_key, trained)
    assert pictures.samples(rng_key, trained, num=4, image_shape=(2, 3)).alt
    with pytest.raises(InputError, match="labels must be one for each of the 40 rows"):
        pictures.latent_map(rng_key, trained, labels=np.zeros(3))


@pytest.mark.parametrize(
    ("shape", "image"),
    [((64,), (8, 8)), ((61,), None), ((1,), None), ((5, 7), (5, 7)), ((5, 7, 3), (5, 7, 3)), ((5, 7, 2), None), ((), None)],
)
def test_the_shape_of_an_image(shape, image):
    assert pictures.image_shape_of(shape) == image


@pytest.mark.slow
def test_the_page_has_the_exact_likelihood_and_a_text_for_each_figure(rng_key, linear, tmp_path):
    """The guide is the posterior, so that all weights of a datum are equal."""
    trained = linear.trained(linear.rows(np.random.default_rng(0), FEW))
    report.write(rng_key, trained, tmp_path / "report.html", labels=np.arange(FEW) % 2, title="a <b>", progress=False)
    text = (tmp_path / "report.html").read_text()
    log_p = linear.log_p(trained.held_out["x"])
    assert f"log p(x) is {log_p.mean():.3f} ± {log_p.std(ddof=1) / np.sqrt(FEW):.3f} nats" in text
    for size in ("K = 1, the ELBO", "K = 50", "K = 5,000"):
        assert re.search(rf"{size}</th><td>{log_p.mean():.3f}</td><td>[\d.]+</td><td>{-log_p.mean() / 4 / np.log(2):.4f}</td>", text)
    assert "a &lt;b&gt;" in text
    assert len(re.findall(r'<svg [^>]*role="img" aria-label="[^"]{20,}"', text)) == len(re.findall("<svg", text)) == 6
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]+"', "", text)
    with pytest.raises(InputError, match="cannot be written"):
        report.write(rng_key, trained, tmp_path / "none" / "report.html", progress=False)


@pytest.mark.slow
def test_the_page_says_which_pictures_are_missing(rng_key):
    linear = exact_vae.orthogonal()
    text = report.html(keys.fold_in(rng_key, 0), linear.trained(linear.rows(np.random.default_rng(0), FEW)), progress=False)
    assert "Reconstructions, Samples, Traversals, Interpolation: Rows of &#x27;x&#x27; have shape (6,)" in text
    assert "Map of the codes" in text
