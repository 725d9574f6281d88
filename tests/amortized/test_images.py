"""amortized/images.py: images become rows of pixels with their labels; what cannot be used is one sentence."""

import gzip
import io
import re
import struct

import numpy as np
import pytest
from PIL import Image

from vipatterns.amortized import images
from vipatterns.errors import InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 5, 4), np.uint8)  # (N, H, W): sides that cannot be mistaken for one another
COLOUR = RNG.integers(0, 256, (6, 5, 4, 3), np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9], np.uint8)
SCALED = GREY.reshape(6, 20).astype(np.float32) / 255


def idx(array, code=8):
    """An IDX file's bytes, by the format's description."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.tobytes()


def save(folder, arrays, names, mode=None):
    for array, name in zip(arrays, names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array, mode).save(folder / name)


NAMES = [f"{i}.png" for i in range(6)]


# Folders


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_a_folder_is_read_in_the_order_of_its_names(tmp_path, pixels):
    save(tmp_path, pixels, NAMES)
    found = images.read(tmp_path)
    np.testing.assert_array_equal(found.x, pixels.reshape(6, -1).astype(np.float32) / 255)
    assert (found.x.dtype, found.image_shape, found.labels) == (np.float32, pixels.shape[1:], None)
    assert found.source == f"6 images of {' x '.join(map(str, pixels.shape[1:]))} from {tmp_path}"


def test_sub_folders_are_labels_in_the_order_of_numbers_or_of_names(tmp_path):
    save(tmp_path / "n", GREY[:3], ["10/a.png", "9/a.png", "9/b.png"])
    found = images.read(tmp_path / "n")
    assert (found.labels.tolist(), found.labels.dtype, found.classes) == ([1, 0, 0], np.int64, ("9", "10"))
    np.testing.assert_array_equal(found.x, SCALED[:3])
    save(tmp_path / "t", GREY[:2], ["b/1.png", "a/2.png"])
    found = images.read(tmp_path / "t")
    assert (found.labels.tolist(), found.classes) == ([0, 1], ("a", "b"))
    np.testing.assert_array_equal(found.x, SCALED[[1, 0]])


def test_jpegs_are_read_and_other_files_are_counted(tmp_path):
    flat = np.full((16, 16), 128, np.uint8)
    save(tmp_path, [flat, flat], ["a.jpg", "b.JPEG"])
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".DS_Store").write_text("")
    found = images.read(tmp_path)
    assert abs(found.x * 255 - 128).max() <= 1  # JPEG loses a little
    assert found.source.endswith("1 other files left out")


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise shows it upright
    Image.fromarray(GREY[0]).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(images.read(tmp_path).x.reshape(4, 5), np.rot90(GREY[0], -1).astype(np.float32) / 255)


def test_other_kinds_of_png_mean_the_same_grey_or_colour(tmp_path):
    ink = GREY[0] > 127
    deep = GREY[0].astype(np.uint16) * 257
    for name, image in {
        "bits": Image.fromarray(ink),
        "masks": Image.fromarray(ink.astype(np.uint8)),
        "deep": Image.fromarray(deep),
        "opaque": Image.fromarray(GREY[0]).convert("LA"),
        "rgba": Image.fromarray(COLOUR[0]).convert("RGBA"),
        "palette": Image.fromarray(np.repeat(GREY[0][..., None], 3, 2)).quantize(256),
    }.items():
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "a.png")
    found = {path.name: images.read(path) for path in tmp_path.iterdir()}
    for name in ("bits", "masks"):
        np.testing.assert_array_equal(found[name].x, ink.reshape(1, -1))
    for name in ("deep", "opaque"):
        np.testing.assert_allclose(found[name].x, SCALED[:1], rtol=1e-6)
    np.testing.assert_array_equal(found["rgba"].x, COLOUR[:1].reshape(1, -1).astype(np.float32) / 255)
    np.testing.assert_array_equal(found["palette"].x.reshape(20, 3)[:, 0], SCALED[0])
    assert found["palette"].image_shape == (5, 4, 3)


# IDX


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        ("t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte.gz"),
        ("emnist-digits-images-idx3-ubyte.gz", "emnist-digits-labels-idx1-ubyte"),
    ],
)
def test_idx_files_are_read_with_the_labels_beside_them(tmp_path, name, beside):
    for file, array in ((name, GREY), (beside, LABELS)):
        (tmp_path / file).write_bytes(gzip.compress(idx(array)) if file.endswith(".gz") else idx(array))
    found = images.read(tmp_path / name)
    np.testing.assert_array_equal(found.x, SCALED)
    assert (found.image_shape, found.labels.tolist(), found.labels.dtype) == ((5, 4), LABELS.tolist(), np.int64)
    assert beside in found.source
    (tmp_path / beside).unlink()
    assert images.read(tmp_path / name).labels is None


def test_idx_floats_and_colour(tmp_path):
    floats = (GREY / 255).astype(">f8")
    (tmp_path / "a.idx").write_bytes(idx(floats, 0x0E))
    np.testing.assert_allclose(images.read(tmp_path / "a.idx").x, SCALED, rtol=1e-6)
    (tmp_path / "a.idx4-ubyte").write_bytes(idx(COLOUR))
    assert images.read(tmp_path / "a.idx4-ubyte").image_shape == (5, 4, 3)


# Arrays


@pytest.mark.parametrize(
    ("array", "shape", "x"),
    [
        (GREY, (5, 4), SCALED),
        (GREY[..., None], (5, 4), SCALED),
        (COLOUR, (5, 4, 3), COLOUR.reshape(6, -1).astype(np.float32) / 255),
        (GREY[:, :4].reshape(6, 16), (4, 4), GREY[:, :4].reshape(6, 16).astype(np.float32) / 255),
        (GREY.reshape(6, 20), (1, 20), SCALED),
        (GREY / 255, (5, 4), SCALED),
        (GREY > 9, (5, 4), (GREY > 9).reshape(6, -1)),
        ((GREY > 9).astype(np.uint8), (5, 4), (GREY > 9).reshape(6, -1)),
        ((GREY > 9).astype(int), (5, 4), (GREY > 9).reshape(6, -1)),
    ],
)
def test_arrays_of_every_shape(tmp_path, array, shape, x):
    np.save(tmp_path / "a.npy", array)
    found = images.read(tmp_path / "a.npy")
    assert (found.image_shape, found.x.dtype, found.labels) == (shape, np.float32, None)
    np.testing.assert_allclose(found.x, x, rtol=1e-6)


def test_an_archive_has_labels(tmp_path):
    np.savez_compressed(tmp_path / "mnist.npz", x_train=GREY, y_train=LABELS, x_test=GREY[:2], y_test=LABELS[:2])
    found = images.read(tmp_path / "mnist.npz")
    assert (found.labels.tolist(), found.classes) == (LABELS.tolist(), ())
    assert found.source.endswith("arrays left out: x_test, y_test")
    np.savez(tmp_path / "b.npz", images=GREY[:3], label=["dog", "cat", "dog"])
    found = images.read(tmp_path / "b.npz")
    assert (found.labels.tolist(), found.classes) == ([1, 0, 1], ("cat", "dog"))
    np.savez(tmp_path / "c.npz", GREY)
    np.testing.assert_array_equal(images.read(tmp_path / "c.npz").x, SCALED)


# What cannot be used


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif isinstance(content, Image.Image):
        content.save(path)
    elif path.suffix == ".npy":
        np.save(path, content)
    else:
        Image.fromarray(content).save(path)


def png(array=GREY[0]):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


LARGE = RNG.integers(0, 256, (64, 64), np.uint8)
SPOILT = np.where(np.arange(6)[:, None, None] == 2, np.nan, GREY / 255)


@pytest.mark.parametrize(
    ("what", "files", "sentence"),
    [
        ("f", {"f/a.png": GREY[0], "f/b.png": GREY[0].T}, r"mixed kinds, a\.png \(5 x 4 grey\) and b\.png \(4 x 5 grey\): bring"),
        ("f", {"f/a.png": GREY[0], "f/b.png": COLOUR[0]}, r"a\.png \(5 x 4 grey\) and b\.png \(5 x 4 x 3 colour\): bring"),
        ("f", {"f/a.png": GREY[0], "f/b.png": GREY[0].astype(np.uint16) * 257}, r"and b\.png \(5 x 4 grey of 16 bits\): bring"),
        ("f", {"f/1/a.png": GREY[0], "f/b.png": GREY[0]}, r"b\.png has no label, while images in the sub-folders of .*f have"),
        ("f", {"f/train/1/a.png": GREY[0]}, r"a\.png lies 2 folders deep: name the folder whose .*such as .*train\."),
        ("f", {"f/a.png": png(LARGE)[:-1000]}, r"a\.png is no whole PNG or JPEG image \(.*truncated.*\): replace it"),
        ("f", {"f/a.png": png(LARGE)[:20]}, r"a\.png is no whole PNG or JPEG image \(.*\): replace it"),
        ("f", {"f/a.jpg": b"once upon a time"}, r"a\.jpg is no whole PNG or JPEG image \(.*\): replace it"),
        ("f", {"f/a.png": b""}, r"a\.png is no whole PNG or JPEG image \(.*\): replace it"),
        ("f", {"f/a.png": Image.new("RGBA", (4, 4), (9, 9, 9, 0))}, r"a\.png has transparent pixels: put it on a background"),
        ("f", {"f/a.txt": b"x"}, r"The folder .*f holds no PNG or JPEG files, but a\.txt: name a folder"),
        ("f", {"f/.hidden": b"x"}, r"The folder .*f holds no PNG or JPEG files, but nothing: name a folder"),
        ("f", {f"f/{i}.bmp": b"x" for i in range(5)}, r"but 0\.bmp, 1\.bmp, 2\.bmp and 2 more: name a folder"),
        ("a.bmp", {"a.bmp": GREY[0]}, r"a\.bmp is of no known kind: images are a folder of PNG or JPEG files, an IDX file"),
        ("none", {}, r"There is no file or folder .*none: check its name"),
        ("a-idx3-ubyte", {"a-idx3-ubyte": idx(GREY)[:-1]}, r"a-idx3-ubyte should have 136 bytes by its header, and has 135: fetch"),
        ("a-idx3-ubyte", {"a-idx3-ubyte": idx(GREY) + b"\0"}, r"should have 136 bytes by its header, and has 137: fetch"),
        ("a-idx3-ubyte", {"a-idx3-ubyte": idx(GREY)[:7]}, r"by its header, and has 7: fetch"),
        ("a-idx3-ubyte", {"a-idx3-ubyte": b"PNG!" + idx(GREY)}, r"magic number of IDX, such as 0x00000803 .* begins with 0x504e4721"),
        ("a-idx3-ubyte", {"a-idx3-ubyte": idx(GREY, code=7)}, r"begins with 0x00000703: it is no IDX file"),
        ("a-idx3-ubyte", {"a-idx3-ubyte": b""}, r"begins with 0x\(nothing\): it is no IDX file"),
        ("a-idx3-ubyte.gz", {"a-idx3-ubyte.gz": gzip.compress(idx(GREY))[:-9]}, r"a-idx3-ubyte\.gz is no whole gzip file \(.*\): fetch"),
        ("a-idx3-ubyte.gz", {"a-idx3-ubyte.gz": gzip.compress(idx(GREY))[:-30]}, r"is no whole gzip file \(.*\): fetch"),
        ("a-idx1-ubyte", {"a-idx1-ubyte": idx(LABELS)}, r"a-idx1-ubyte holds labels, and not images: name the file of images"),
        (
            "images-idx3-ubyte",
            {"images-idx3-ubyte": idx(GREY), "labels-idx1-ubyte": idx(LABELS[:5])},
            r"The 6 images need as many labels, and .*labels-idx1-ubyte has labels of shape \(5,\): take those",
        ),
        (
            "images-idx3-ubyte",
            {"images-idx3-ubyte": idx(GREY), "labels-idx1-ubyte": idx(LABELS)[:-1]},
            r"labels-idx1-ubyte should have 14 bytes by its header, and has 13: fetch",
        ),
        ("a.npy", {"a.npy": GREY.astype(float)}, r"a\.npy should be in \[0, 1\], and image 0 .* holds \d+ as float64: rescale them"),
        ("a.npy", {"a.npy": GREY.astype(int)}, r"a\.npy should be in \[0, 1\], and image 0 .* holds \d+ as int64: rescale them"),
        ("a.npy", {"a.npy": GREY / 255 - 0.1}, r"should be in \[0, 1\], and image \d .* holds -0\.\d+ as float64: rescale"),
        ("a.npy", {"a.npy": SPOILT}, r"should be in \[0, 1\], and image 2 \(counted from 0\) holds nan as float64: drop or fill it"),
        ("a.npy", {"a.npy": np.array([{}, 3], object)}, r"a\.npy holds Python objects, which are not loaded: save an array"),
        ("a.npz", {"a.npz": {"x": np.array([{}, 3], object)}}, r"a\.npz holds Python objects, which are not loaded: save an array"),
        ("a.npy", {"a.npy": np.array(["a", "b"])[:, None]}, r"a\.npy should hold numbers, and holds <U1: convert"),
        ("a.npy", {"a.npy": GREY[:0]}, r"one or more, and holds an array of shape \(0, 5, 4\): reshape"),
        ("a.npy", {"a.npy": LABELS}, r"\(N, H, W\), \(N, H, W, C\) or \(N, D\), .* shape \(6,\): reshape it"),
        ("a.npy", {"a.npy": np.zeros((6, 3, 5, 7))}, r"its shape is \(6, 3, 5, 7\): move the axis of channels to the end"),
        ("a.npy", {"a.npy": b"once upon a time"}, r"a\.npy is no whole array file: it does not begin"),
        ("a.npy", {"a.npy": b""}, r"a\.npy is no whole array file: it does"),
        ("a.npz", {"a.npz": b"PK\x03\x04once"}, r"a\.npz is no whole array file: it does"),
        ("a.npz", {"a.npz": {"a": GREY, "b": GREY}}, r"as an array named x, images or x_train, and holds a, b\."),
        ("a.npz", {"a.npz": {"x": GREY, "y": LABELS[:4]}}, r"a\.npz has labels of shape \(4,\): take those"),
        ("a.npz", {"a.npz": {"x": GREY, "y": LABELS / 2}}, r"The labels in .*a\.npz should be whole numbers or text, and are float64"),
    ],
)
def test_what_cannot_be_used_gets_a_sentence(tmp_path, what, files, sentence):
    for name, content in files.items():
        write(tmp_path / name, content)
    with pytest.raises(InputError, match=sentence) as error:
        images.read(tmp_path / what)
    said = str(error.value)
    assert "\n" not in said
    assert said.endswith(".")
    assert not re.search(r"\.(?=\s)", said)  # one sentence


def test_a_cut_array_and_an_empty_folder(tmp_path):
    np.save(tmp_path / "a.npy", GREY)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-10])
    with pytest.raises(InputError, match=r"a\.npy is no whole array file"):
        images.read(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", x=GREY)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-40])
    with pytest.raises(InputError, match=r"a\.npz is no whole array file"):
        images.read(tmp_path / "a.npz")
    (tmp_path / "f").mkdir()
    with pytest.raises(InputError, match=r"f holds no PNG or JPEG files, but nothing"):
        images.read(tmp_path / "f")
