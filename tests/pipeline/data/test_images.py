"""Image files of every format and mode, with values computed by hand; and files that are something else."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.core import DataError
from pipeline.data import images
from pipeline.data.images import EXTENSIONS, FORMATS, read_image

Array = np.ndarray[Any, np.dtype[Any]]

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
FOUR = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)
LUMA = np.array([[76, 150], [29, 255]], np.uint8)  # 0.299 R + 0.587 G + 0.114 B (ITU-R 601): 76.2, 149.7, 29.1, 255


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.webp", {"lossless": True, "exact": True}),
        ("a.tiff", {}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("a.gif", {}),
    ],
)
def test_format_gives_the_stored_colours(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    path = saved(Image.fromarray(FOUR), tmp_path / name, **options)
    np.testing.assert_array_equal(read_image(path, "RGB"), FOUR)
    np.testing.assert_array_equal(read_image(path, "L"), LUMA)


def test_jpeg_gives_the_stored_colours_within_its_loss(tmp_path: Path) -> None:
    colours = np.repeat(np.repeat(FOUR, 16, 0), 16, 1)
    path = saved(Image.fromarray(colours), tmp_path / "a.jpg", quality=100, subsampling=0)
    assert np.abs(read_image(path, "RGB").astype(int) - colours).max() <= 2


def test_name_says_nothing_about_the_format(tmp_path: Path) -> None:
    path = saved(Image.fromarray(FOUR), tmp_path / "a.jpg", format="BMP")
    np.testing.assert_array_equal(read_image(path, "RGB"), FOUR)


@pytest.mark.parametrize("stored", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_grey_image_is_grey_in_every_mode(stored: str, tmp_path: Path) -> None:
    grey = np.array([[0, 255], [255, 0]], np.uint8)
    path = saved(Image.fromarray(grey).convert(stored), tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(path, "L"), grey)
    np.testing.assert_array_equal(read_image(path, "RGB"), np.repeat(grey[..., None], 3, 2))


def png(path: Path, header: tuple[int, int, int, int], rows: bytes, *chunks: tuple[bytes, bytes]) -> Path:
    """A PNG by hand: width, height, bit depth and colour type, and the rows with their filter bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)),
        *chunks,
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


def test_sixteen_bits_keep_their_upper_eight(tmp_path: Path) -> None:
    values = (0, 0x00FF, 0x0100, 0x80FF, 0xFFFF)
    grey = png(tmp_path / "grey.png", (5, 1, 16, 0), b"\0" + struct.pack(">5H", *values))
    np.testing.assert_array_equal(read_image(grey, "L"), [[0, 0, 1, 128, 255]])
    colour = png(tmp_path / "colour.png", (1, 1, 16, 2), b"\0" + struct.pack(">3H", 0x0100, 0x80FF, 0xFFFF))
    np.testing.assert_array_equal(read_image(colour, "RGB"), [[[1, 128, 255]]])
    tiff = saved(Image.fromarray(np.array([values], np.uint16)), tmp_path / "grey.tiff")
    np.testing.assert_array_equal(read_image(tiff, "L"), [[0, 0, 1, 128, 255]])
    np.testing.assert_array_equal(read_image(tiff, "RGB"), [[[v] * 3 for v in (0, 0, 1, 128, 255)]])


@pytest.mark.parametrize(("depth", "row", "expected"), [(1, 0b10000000, [255, 0]), (2, 0b01110000, [85, 255])])
def test_few_bits_are_spread_over_the_whole_range(depth: int, row: int, expected: list[int], tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", (2, 1, depth, 0), bytes([0, row]))
    np.testing.assert_array_equal(read_image(path, "L"), [expected])


@pytest.mark.parametrize("transparency", [None, b"\0", b"\x80\x40\xff"])
def test_palette_gives_its_colours_and_no_warning_when_some_are_transparent(
    transparency: bytes | None, tmp_path: Path
) -> None:
    chunks = [(b"PLTE", bytes([*RED, *BLUE, 10, 20, 30]))]
    chunks += [(b"tRNS", transparency)] if transparency is not None else []
    path = png(tmp_path / "a.png", (3, 1, 8, 3), bytes([0, 0, 1, 2]), *chunks)
    with warnings.catch_warnings(action="error"):
        np.testing.assert_array_equal(read_image(path, "RGB"), [[RED, BLUE, (10, 20, 30)]])
        np.testing.assert_array_equal(read_image(path, "L"), [[76, 29, 18]])  # 2.99 + 11.74 + 3.42 = 18.15


def test_transparency_leaves_the_stored_colour(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 0], [40, 50, 60, 128]]], np.uint8)
    for name in ("a.png", "a.tiff"):
        path = saved(Image.fromarray(pixels, "RGBA"), tmp_path / name)
        np.testing.assert_array_equal(read_image(path, "RGB"), [[[10, 20, 30], [40, 50, 60]]])


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    """R = (255 - C)(255 - K) / 255: for C 51 and K 51, 204 * 204 / 255 = 163.2."""
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255], [51, 0, 0, 51]]], np.uint8)
    path = saved(Image.fromarray(inks, "CMYK"), tmp_path / "a.tiff")
    np.testing.assert_array_equal(
        read_image(path, "RGB"), [[[255, 255, 255], [0, 255, 255], [0, 0, 0], [163, 204, 204]]]
    )


def test_cmyk_jpeg_of_adobe_is_not_inverted(tmp_path: Path) -> None:
    inks = np.full((16, 16, 4), (255, 0, 0, 0), np.uint8)  # pure cyan
    path = saved(Image.fromarray(inks, "CMYK"), tmp_path / "a.jpg", quality=100)
    assert np.abs(read_image(path, "RGB").astype(int) - (0, 255, 255)).max() <= 2


UPRIGHT = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, [[1, 2, 3], [4, 5, 6]]),
        (2, [[3, 2, 1], [6, 5, 4]]),
        (3, [[6, 5, 4], [3, 2, 1]]),
        (4, [[4, 5, 6], [1, 2, 3]]),
        (5, [[1, 4], [2, 5], [3, 6]]),
        (6, [[3, 6], [2, 5], [1, 4]]),  # is to be turned right by a quarter
        (7, [[6, 3], [5, 2], [4, 1]]),
        (8, [[4, 1], [5, 2], [6, 3]]),
        (9, [[1, 2, 3], [4, 5, 6]]),  # no such orientation
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_image_stands_as_its_exif_says(orientation: int, stored: list[list[int]], dtype: type, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.array(stored, dtype) * dtype(1 if dtype is np.uint8 else 256)
    path = saved(Image.fromarray(pixels), tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(path, "L"), UPRIGHT)


def test_damaged_exif_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(UPRIGHT).save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_image(path, "L"), UPRIGHT)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def test_postscript_never_starts_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, tools = tmp_path / "marker", tmp_path / "bin"
    tools.mkdir()
    (tools / "gs").write_text(
        f"#!/bin/sh\n[ $1 = --version ] && exit 0\necho started >>{marker}\ncat >/dev/null\nexit 1\n"
    )
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # found earlier by another test
    path = tmp_path / "a.png"
    path.write_bytes(POSTSCRIPT)
    with pytest.raises((OSError, subprocess.CalledProcessError)), Image.open(path) as image:
        image.load()  # Pillow alone starts the stand-in
    assert marker.exists()
    marker.unlink()
    with pytest.raises(DataError, match="is no image of a known format: PNG, JPEG"):
        read_image(path, "RGB")
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["PPM", "ICO", "PCX", "TGA", "SGI", "DDS", "PDF", "JPEG2000", "ICNS"])
def test_format_that_is_not_named_is_refused(kind: str, tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (32, 32)), tmp_path / "a.png", format=kind)
    with pytest.raises(DataError, match="is no image of a known format"):
        read_image(path, "RGB")


def test_several_frames_are_refused(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    for name in ("a.gif", "a.tiff", "a.webp", "a.png"):
        path = saved(frames[0], tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(DataError, match="holds 3 frames or pages"):
            read_image(path, "RGB")


def test_photograph_with_a_preview_is_read(tmp_path: Path) -> None:
    """Phones write MPO: a JPEG with further pictures behind the first."""
    pictures = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE)]
    path = saved(pictures[0], tmp_path / "a.jpg", format="MPO", save_all=True, append_images=pictures[1:])
    with Image.open(path) as image:
        assert image.format == "MPO"
    assert np.abs(read_image(path, "RGB").astype(int) - RED).max() <= 2


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_samples_of_32_bits_are_refused(dtype: type, tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.ones((2, 2), dtype)), tmp_path / "a.tiff")
    with pytest.raises(DataError, match="not 8-bit or 16-bit colours"):
        read_image(path, "L")


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(size: tuple[int, int], tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", (*size, 8, 0), bytes(100))
    with warnings.catch_warnings(action="ignore"), pytest.raises(DataError, match="has more than 89478485 pixels"):
        read_image(path, "L")
    with warnings.catch_warnings(action="error"), pytest.raises(DataError, match="has more than 89478485 pixels"):
        read_image(path, "L")


def test_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Image.fromarray(FOUR), tmp_path / "a.bmp")
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
    with pytest.raises(DataError, match="has more than 0 MiB"):
        read_image(path, "RGB")


def test_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, problem in (
        (tmp_path, "is not a file"),
        (tmp_path / "pipe.png", "is not a file"),
        (tmp_path / "x", "no such"),
    ):
        with pytest.raises(DataError, match=problem) as caught:
            read_image(path, "RGB")
        assert caught.value.where == str(path)


def test_extensions_are_those_of_the_formats() -> None:
    Image.init()
    assert {Image.EXTENSION[extension] for extension in EXTENSIONS} == set(FORMATS)


def _noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_file_is_refused(kind: str, tmp_path: Path) -> None:
    whole = io.BytesIO()
    _noise().save(whole, format=kind)
    path = tmp_path / "a.png"
    for share in (0.0, 0.02, 0.3, 0.6, 0.9):
        path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
        with pytest.raises(DataError) as caught:
            read_image(path, "RGB")
        assert caught.value.where == str(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_mutated_file_is_read_or_refused_and_nothing_else(kind: str, tmp_path: Path) -> None:
    whole = io.BytesIO()
    _noise().save(whole, format=kind)
    rng, path = random.Random(0), tmp_path / "a.png"
    refused = 0
    for _ in range(300):
        data = bytearray(whole.getvalue())
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(min(len(data), rng.choice((64, len(data)))))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            with warnings.catch_warnings(action="ignore"):
                assert read_image(path, "RGB").dtype == np.uint8
        except DataError:
            refused += 1
    assert refused > 0


def test_text_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "x" * (1 << 23), zip=True)
    path = saved(Image.fromarray(FOUR), tmp_path / "a.png", pnginfo=info)
    with pytest.raises(DataError, match="is not a readable image"):
        read_image(path, "RGB")
