"""Image files: only the raster formats that are named here are decoded, into greyscale or RGB.

Pillow alone picks a decoder by a file's content: for PostScript it starts Ghostscript, whatever the file is called.
Masks of class values are read as they are stored.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.core import DataError, first_line
from pipeline.core.arrays import Array

if TYPE_CHECKING:
    from PIL.Image import Image


FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"))
MAX_PIXELS = 89_478_485
"""A quarter of a GiB in RGB: where Pillow itself begins to warn."""

MAX_FILE_BYTES = 1 << 29

_REPAIR = "write the image again, or remove the file"
_ORIENTATION = 0x0112  # the tag of EXIF


def read_image(
    file: Path | bytes, mode: Literal["L", "RGB"], where: str | None = None, *, upright: bool = True
) -> Array:
    """Decode an image as a person sees it: turned as its EXIF orientation says, unless ``upright`` is false.

    Samples of 16 bits keep their upper 8 bits. Transparency is dropped, and the stored colours stay, as torchvision's
    loader does it.

    Args:
        file: PNG, JPEG, BMP, WebP, GIF or TIFF, whatever its name says; or its content.
        mode: Greyscale ``(H, W) uint8``, or RGB ``(H, W, 3) uint8``.
        where: What messages call it; by default its path.

    Raises:
        DataError: No such file, another format, damaged or truncated, too large, several frames or pages, or samples
            that are no 8-bit or 16-bit colours.
    """

    def pixels(image: Image) -> Image:
        return as_bytes(turned(image) if upright else image).convert(mode)

    return _decoded(file, where or str(file), pixels)


def read_mask(file: Path | bytes, where: str | None = None, *, upright: bool = True) -> Array:
    """Decode a mask ``(H, W)`` of class values: the numbers that an image stores, or its palette's positions.

    It is turned as its EXIF orientation says, unless ``upright`` is false.

    Raises:
        DataError: As `read_image`; or it has several channels, or is of a format that may change values.
    """
    place = where or str(file)

    def values(image: Image) -> Image:
        if image.format in _LOSSY:
            problem = f"is a {image.format}, which may change the values of a mask"
            raise DataError(problem, where=place, fix="store masks as PNG")
        if image.mode not in ("1", "L", "P", "I;16", "I;16B", "I"):
            problem = f"holds colours (Pillow's mode {image.mode!r}), not one class value for each pixel"
            raise DataError(problem, where=place, fix="store the index of each pixel's class as a greyscale PNG")
        return turned(image) if upright else image

    found = _decoded(file, place, values, of="mask")
    return found.astype(np.uint8) if found.dtype == bool else found


_LOSSY = ("JPEG", "MPO", "WEBP")


def _decoded(
    file: Path | bytes, where: str, read: Callable[[Image], Image], of: Literal["image", "mask"] = "image"
) -> Array:
    """The pixels of an image file, after the checks that every file passes."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(file, Path):
        require_regular(file, where, fix=_REPAIR)
    if (len(file) if isinstance(file, bytes) else file.stat().st_size) > MAX_FILE_BYTES:
        raise DataError(f"has more than {MAX_FILE_BYTES >> 20} MiB", where=where, fix="make it smaller first")
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
            _check(image, where, of)
            return np.array(read(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large("it", where) from None
    except UnidentifiedImageError:
        problem = f"is no image of a known format: {', '.join(FORMATS)}"
        raise DataError(problem, where=where, fix=_REPAIR) from None
    except DataError:
        raise
    except Exception as error:  # each of Pillow's decoders fails in its own ways
        raise DataError(f"is not a readable image: {first_line(error)}", where=where, fix=_REPAIR) from None


def require_regular(path: Path, where: str, fix: str) -> None:
    """Refuse what is no file: a named pipe would be waited for."""
    try:
        if path.is_file():
            return
        problem = "is not a file" if path.exists() else "no such file"
    except (OSError, ValueError) as error:  # such as a name that is too long
        problem = f"is not a file: {error.strerror if isinstance(error, OSError) else error}"
    raise DataError(problem, where=f"{where[:200]} …" if len(where) > 500 else where, fix=fix)


def _too_large(what: str, where: str) -> DataError:
    return DataError(f"{what} has more than {MAX_PIXELS} pixels", where=where, fix="make it smaller first")


def _check(image: Image, where: str, of: Literal["image", "mask"]) -> None:
    """Refuse what would be decoded into something else than one picture."""
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(f"the image of {image.width}x{image.height}", where)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's JPEG with previews, whose first picture is the photograph
        raise DataError(f"holds {frames} frames or pages, not one image", where=where, fix="extract them first")
    if of == "image" and image.mode in ("I", "F", "LAB"):
        raise DataError(
            f"holds samples of Pillow's mode {image.mode!r}, not 8-bit or 16-bit colours",
            where=where,
            fix="store the values in an npz",
        )


def turned(image: Image) -> Image:
    """The image without its EXIF orientation; a damaged EXIF block says nothing."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(int(image.getexif().get(_ORIENTATION, 1)))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def as_bytes(image: Image) -> Image:
    """The image with 8 bits per sample, in a mode that Pillow converts without loss of colour."""
    from PIL.Image import fromarray

    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        return fromarray((values >> 8).astype(np.uint8))
    if image.mode in ("P", "PA"):
        return image.convert("RGBA")  # Pillow warns when it drops transparency straight from a palette
    return image
