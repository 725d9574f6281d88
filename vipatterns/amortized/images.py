"""Images of one size as rows of pixels: from a folder, IDX files (the format of MNIST) or array files. Nothing is downloaded.

- A folder of PNG and JPEG files. Where it has sub-folders, these are the labels.
- An IDX file of images, plain or gzip-compressed (Y. LeCun, http://yann.lecun.com/exdb/mnist/). The file of labels beside it is found by
  MNIST's naming: `train-images-idx3-ubyte.gz` and `train-labels-idx1-ubyte.gz`.
- A .npy array, (N, H, W), (N, H, W, C), or (N, D), whose images are squares where D is one and lines of pixels where not; or a .npz archive
  with such an array, named x, images or x_train, and labels, named y, label, labels or y_train.

Whole numbers of 8 bits are divided by 255, and of 16 bits by 65,535, unless none is above 1. Other numbers have to be in [0, 1].
"""

import gzip
import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vipatterns.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Of the files of a folder that are read."""
IDX_NAME = re.compile(r"(idx\d?|ubyte)(\.gz)?$", re.IGNORECASE)
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""The third byte of an IDX file -> what its numbers are."""
X_NAMES, LABEL_NAMES = ("x", "images", "x_train"), ("y", "label", "labels", "y_train")
"""Names of arrays in an archive."""
CHANNELS = (1, 3, 4)
Labels = tuple[np.ndarray | None, tuple[str, ...]]
"""Labels (N,), and what they stand for."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one size."""

    x: np.ndarray
    """(N, D) float32, in [0, 1]: the pixels of an image line by line, the channels of a pixel together."""
    image_shape: tuple[int, ...]
    """(H, W), or (H, W, C) with colour, in pixels; their product is D."""
    labels: np.ndarray | None
    """(N,) int64; None where there are none."""
    source: str
    """How many images of what size were read, and from where."""
    classes: tuple[str, ...] = ()
    """What the labels 0, 1, ... stand for, where they were text; empty where they were numbers."""


def read(path: str | Path) -> Images:
    """The images at a path, by the rules above.

    Args:
        path: a folder or a file.

    Returns:
        Images, as floats in [0, 1].

    Raises:
        InputError: there are none, or they cannot be used; the sentence says why.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _folder(path)
        if not path.exists():
            raise InputError(f"There is no file or folder {path}: check its name.")
        if path.suffix.lower() in (".npy", ".npz"):
            return _array_file(path)
        if IDX_NAME.search(path.name):
            return _idx_files(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    raise InputError(
        f"{path} is of no known kind: images are a folder of PNG or JPEG files, an IDX file, .npy or .npz; tables .csv, .tsv or .parquet."
    )


# Folders


def _folder(folder: Path) -> Images:
    inside = [path for path in sorted(folder.rglob("*")) if path.is_file() and not any(p[0] == "." for p in path.relative_to(folder).parts)]
    files = [path for path in inside if path.suffix.lower() in SUFFIXES]
    if not files:
        there = ", ".join(path.name for path in inside[:3]) + (f" and {len(inside) - 3} more" if len(inside) > 3 else "")
        raise InputError(f"The folder {folder} holds no PNG or JPEG files, but {there or 'nothing'}: name a folder of images, or a file.")
    labels = _folder_labels(folder, files)
    first = _pixels(files[0])
    rows = np.empty((len(files), *first.shape), first.dtype)
    for i, file in enumerate(files):
        pixels = _pixels(file)
        if (pixels.shape, pixels.dtype) != (first.shape, first.dtype):
            raise InputError(
                f"The images of {folder} are of mixed kinds, {files[0].relative_to(folder)} {_kind(first)} and "
                f"{file.relative_to(folder)} {_kind(pixels)}: bring them to one size and kind first."
            )
        rows[i] = pixels
    others = len(inside) - len(files)
    note = f"; {others} other files left out" if others else ""
    return _images(rows, labels, str(folder), note)


def _folder_labels(folder: Path, files: list[Path]) -> Labels:
    """Sub-folders as labels 0, 1, ..., in the order of numbers where all are numbers, else of names."""
    inner = [file.relative_to(folder).parts[:-1] for file in files]
    if not any(inner):
        return None, ()
    for file, parts in zip(files, inner, strict=True):
        if not parts:
            raise InputError(
                f"{file} has no label, while images in the sub-folders of {folder} have their names as labels: move it into one of them."
            )
        if len(parts) > 1:
            raise InputError(
                f"{file} lies {len(parts)} folders deep: name the folder whose sub-folders are the labels, such as {file.parent.parent}."
            )
    names = {parts[0] for parts in inner}
    classes = sorted(names, key=(lambda n: (int(n), n)) if all(n.isdecimal() for n in names) else None)
    code = {name: i for i, name in enumerate(classes)}
    return np.array([code[parts[0]] for parts in inner], np.int64), tuple(classes)


def _pixels(file: Path) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8, or uint16 where a grey image has 16 bits."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file, formats=["PNG", "JPEG"]) as image:
            image = ImageOps.exif_transpose(image)  # upright, as viewers show it
            if image.mode.startswith("I"):
                return np.asarray(image).astype(np.uint16)
            if image.has_transparency_data:
                image = image.convert("LA" if image.mode == "LA" else "RGBA")
                if image.getchannel("A").getextrema() != (255, 255):
                    raise InputError(f"{file} has transparent pixels: put it on a background first.")
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except InputError:
        raise
    except Exception as error:  # decoders raise whatever they like; the file is at fault
        raise InputError(f"{file} is no whole PNG or JPEG image ({_said(error)}): replace it, or take it out of the folder.") from error


def _kind(pixels: np.ndarray) -> str:
    bits = " of 16 bits" if pixels.dtype == np.uint16 else ""
    return f"({_size(pixels.shape)} {'grey' if pixels.ndim == 2 else 'colour'}{bits})"


# IDX


def _idx_files(path: Path) -> Images:
    values = _idx(path)
    if values.ndim == 1:
        raise InputError(f"{path} holds labels, and not images: name the file of images, whose labels are found beside it.")
    beside = _labels_beside(path)
    labels = _coded(None if beside is None else _idx(beside), len(values), beside)
    return _images(values, labels, str(path), f" and {beside.name}" if beside else "")


def _labels_beside(path: Path) -> Path | None:
    """The file of labels by MNIST's naming; None where there is none."""
    name = path.name.removesuffix(".gz")
    start, images, rest = name.rpartition("images")
    if not images:
        return None
    name = f"{start}labels{re.sub(r'idx[34]', 'idx1', rest)}"
    return next((p for p in (path.with_name(name), path.with_name(f"{name}.gz")) if p.exists()), None)


def _idx(path: Path) -> np.ndarray:
    """The array of an IDX file: two zero bytes, a type, the number of axes, their lengths as big-endian 32 bits, the numbers."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path} is no whole gzip file ({_said(error)}): fetch it again.") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_TYPES or not data[3]:
        raise InputError(
            f"{path} should begin with the magic number of IDX, such as 0x00000803 for images of bytes, and begins with "
            f"0x{data[:4].hex() or '(nothing)'}: it is no IDX file."
        )
    num_axes, dtype = data[3], np.dtype(IDX_TYPES[data[2]])
    start = 4 + 4 * num_axes
    shape = tuple(np.frombuffer(data[4:start], ">u4").tolist()) if len(data) >= start else ()
    wanted = start + dtype.itemsize * math.prod(shape)
    if len(data) != wanted or not shape:
        raise InputError(f"{path} should have {wanted:,} bytes by its header, and has {len(data):,}: fetch it again.")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


# Arrays


def _array_file(path: Path) -> Images:
    try:
        with path.open("rb") as file:
            if file.read(6) != b"\x93NUMPY" and not zipfile.is_zipfile(file):
                raise InputError(f"{path} is no whole array file: it does not begin and end as numpy.save and numpy.savez write it.")
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return _images(loaded, (None, ()), str(path))
            names = loaded.files
            found = next((n for n in X_NAMES if n in names), names[0] if len(names) == 1 else None)
            if found is None:
                raise InputError(f"{path} should hold images as an array named {_or(X_NAMES)}, and holds {', '.join(names) or 'none'}.")
            label = next((n for n in LABEL_NAMES if n in names), None)
            left = [n for n in names if n not in (found, label)]
            x, labels = loaded[found], None if label is None else loaded[label]
    except InputError:
        raise
    except (ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        if "Object arrays" in str(error):
            raise InputError(
                f"{path} holds Python objects, which are not loaded: save an array of numbers, of images of one size."
            ) from error
        raise InputError(f"{path} is no whole array file ({_said(error)}): write it again by numpy.save or numpy.savez.") from error
    note = f"; arrays left out: {', '.join(left)}" if left else ""
    return _images(x, _coded(labels, len(x) if x.ndim else 0, path), str(path), note)


def _coded(values: np.ndarray | None, num: int, path: Path | None) -> Labels:
    """Labels as whole numbers; text is coded 0, 1, ... in sorted order."""
    if values is None:
        return None, ()
    if values.shape != (num,):
        raise InputError(
            f"The {num:,} images need as many labels, and {path} has labels of shape {values.shape}: take those that belong to them."
        )
    if values.dtype.kind in "US":
        classes, codes = np.unique(values.astype(str), return_inverse=True)
        return codes.astype(np.int64), tuple(classes.tolist())
    if values.dtype.kind not in "biu":
        raise InputError(f"The labels in {path} should be whole numbers or text, and are {values.dtype}: convert them.")
    return values.astype(np.int64), ()


def _images(values: np.ndarray, labels: Labels, source: str, note: str = "") -> Images:
    """The record of images (N, H, W), (N, H, W, C) or (N, D)."""
    if values.ndim not in (2, 3, 4) or not values.size:
        raise InputError(
            f"{source} should hold images as (N, H, W), (N, H, W, C) or (N, D), one or more, and holds an array of shape {values.shape}: "
            "reshape it."
        )
    if values.ndim == 4 and values.shape[3] not in CHANNELS:
        remedy = "move the axis of channels to the end" if values.shape[1] in CHANNELS else "take these channels"
        raise InputError(f"{source} should hold 1, 3 or 4 channels along the last axis, and its shape is {values.shape}: {remedy}.")
    num, *rest = values.shape
    if values.ndim == 2:
        side = math.isqrt(values.shape[1])
        rest = [side, side] if side**2 == values.shape[1] else [1, values.shape[1]]
    shape = tuple(rest[:2] if rest[2:] == [1] else rest)
    told = f"{num:,} images of {_size(shape)} from {source}{note}"
    return Images(_scaled(values, source).reshape(num, -1), shape, labels[0], told, labels[1])


def _scaled(values: np.ndarray, source: str) -> np.ndarray:
    """Pixels as float32 in [0, 1]."""
    for largest, dtype in ((255, np.uint8), (65535, np.uint16)):
        if values.dtype == dtype and values.max() > 1:
            return np.divide(values, largest, dtype=np.float32)
    if values.dtype.kind not in "biuf":
        raise InputError(f"{source} should hold numbers, and holds {values.dtype}: convert them.")
    inside = (values >= 0) & (values <= 1)
    if not inside.all():
        at = tuple(np.argwhere(~inside)[0])
        remedy = "drop or fill it" if np.isnan(values[at]) else "rescale them, or save bytes, 0 to 255, as uint8"
        raise InputError(
            f"Pixels of {source} should be in [0, 1], and image {at[0]} (counted from 0) holds {values[at]:g} as {values.dtype}: {remedy}."
        )
    return values.astype(np.float32)


def _size(shape: Sequence[int]) -> str:
    """28 x 28 x 3."""
    return " x ".join(map(str, shape))


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__
