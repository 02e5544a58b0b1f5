"""Weight files written by hand, byte by byte, for every data type of the format; and those of old coremltools."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from targets.coreml.interpreter.package import PackageError, WeightFile
from targets.coreml.sdk import coremltools

PACKAGES = Path(__file__).parents[1] / "packages"
GARBAGE = 0x00007FED3475A32F  # an address, as coremltools 7.0 leaves one there
Array = np.ndarray[Any, np.dtype[Any]]


def write(path: Path, kind: int, data: bytes, *, padding: int = 0, reserved: int = 0, version: int = 2) -> Path:
    """A weight file of one record at byte 64, with its data at byte 128."""
    header = struct.pack("<II56x", 1, version)
    record = struct.pack("<IIQQQQQQQ", 0xDEADBEEF, kind, len(data), 128, padding, *[reserved] * 4)
    path.write_bytes(header + record + data)
    return path


WHOLE_BYTES = [
    (1, "00 3c 00 c0", np.array([1, -2], np.float16)),
    (2, "00 00 80 3f 00 00 00 c0", np.array([1, -2], np.float32)),
    (3, "00 ff", np.array([0, 255], np.uint8)),
    (4, "80 7f", np.array([-128, 127], np.int8)),
    (5, "80 3f 00 c0", np.array([1, -2], np.float32)),
    (6, "00 80 ff 7f", np.array([-32768, 32767], np.int16)),
    (7, "00 00 ff ff", np.array([0, 65535], np.uint16)),
    (14, "00 00 00 80 ff ff ff 7f", np.array([-(2**31), 2**31 - 1], np.int32)),
    (15, "00 00 00 00 ff ff ff ff", np.array([0, 2**32 - 1], np.uint32)),
    (16, "38 c0", np.array([1, -2], np.float32)),
    (17, "3c c0", np.array([1, -2], np.float32)),
]


@pytest.mark.parametrize("left_over", [0, 1, 7, 8, GARBAGE, 2**64 - 1])
@pytest.mark.parametrize(("kind", "data", "expected"), WHOLE_BYTES)
def test_type_of_whole_bytes_is_read_whatever_the_reserved_fields_hold(
    kind: int, data: str, expected: Array, left_over: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "w.bin", kind, bytes.fromhex(data), padding=left_over, reserved=left_over)
    got = WeightFile(path).read(64, len(expected))
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


PACKED = [
    (8, "f1 08", 4, 4, np.array([1, -1, -8], np.int8)),  # low half first
    (9, "05", 5, 1, np.array([1, 0, 1], np.uint8)),
    (10, "1b", 2, 2, np.array([3, 2, 1], np.uint8)),
    (11, "21 03", 4, 4, np.array([1, 2, 3], np.uint8)),
    (12, "d1 00", 7, 3, np.array([1, 2, 3], np.uint8)),  # 1 + 2 * 8 + 3 * 64 = 0xd1
    (13, "81 30 00", 6, 6, np.array([1, 2, 3], np.uint8)),  # 1 + 2 * 64 + 3 * 4096 = 0x3081
]


@pytest.mark.parametrize(("kind", "data", "padding", "bits", "expected"), PACKED)
def test_packed_type_is_read_when_its_padding_is_true(
    kind: int, data: str, padding: int, bits: int, expected: Array, tmp_path: Path
) -> None:
    path = write(tmp_path / "w.bin", kind, bytes.fromhex(data), padding=padding, reserved=GARBAGE)
    got = WeightFile(path).read(64, len(expected))
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    assert len(bytes.fromhex(data)) * 8 == padding + bits * len(expected)  # the example itself is well formed


@pytest.mark.parametrize("padding", [0, 3, 8, GARBAGE])
@pytest.mark.parametrize(("kind", "data", "true_padding", "bits", "expected"), PACKED)
def test_packed_type_is_refused_when_its_padding_is_false(
    kind: int, data: str, true_padding: int, bits: int, expected: Array, padding: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "w.bin", kind, bytes.fromhex(data), padding=padding)
    assert padding != true_padding
    with pytest.raises(PackageError, match=f"has {len(expected)} elements of {bits} bits"):
        WeightFile(path).read(64, len(expected))


@pytest.mark.parametrize(("kind", "dtype"), [(16, torch.float8_e4m3fn), (17, torch.float8_e5m2)])
def test_every_float8_has_the_value_that_torch_gives_it(kind: int, dtype: torch.dtype, tmp_path: Path) -> None:
    codes = np.arange(256, dtype=np.uint8)
    got = WeightFile(write(tmp_path / "w.bin", kind, codes.tobytes())).read(64, 256)
    expected = torch.from_numpy(codes).view(dtype).to(torch.float32).numpy()
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got[expected == 0]), np.signbit(expected[expected == 0]))


def test_every_bfloat16_has_the_value_that_torch_gives_it(tmp_path: Path) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    got = WeightFile(write(tmp_path / "w.bin", 5, codes.tobytes())).read(64, len(codes))
    expected = torch.from_numpy(codes.view(np.int16)).view(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("kind", [0, 18, 2**32 - 1])
def test_unknown_type_is_refused(kind: int, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=f"unknown data type {kind}"):
        WeightFile(write(tmp_path / "w.bin", kind, b"0123")).read(64, 1)


@pytest.mark.parametrize("version", [0, 1, 3])
def test_unknown_version_is_refused(version: int, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=f"blob version {version}"):
        WeightFile(write(tmp_path / "w.bin", 3, b"0", version=version))


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
def test_reader_agrees_with_coremltools_on_what_its_writer_wrote(kind: int, tmp_path: Path) -> None:
    coremltools()
    from coremltools.libmilstoragepython import _BlobStorageReader, _BlobStorageWriter

    names = {
        1: "fp16", 2: "float", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 8: "int4", 9: "uint1", 10: "uint2",
        11: "uint4", 12: "uint3", 13: "uint6", 14: "int32", 15: "uint32",
    }  # fmt: skip
    values = np.random.default_rng(kind).integers(0, 2, 37)  # every type holds 0 and 1
    path = tmp_path / "w.bin"
    writer = _BlobStorageWriter(str(path))
    stored = np.array(values, np.float16).view(np.uint16) if kind == 1 else values
    offset = getattr(writer, f"write_{names[kind]}_data")(stored)
    del writer
    got = WeightFile(path).read(offset, len(values))
    theirs = np.array(getattr(_BlobStorageReader(str(path)), f"read_{names[kind]}_data")(offset))
    np.testing.assert_array_equal(got, theirs.view(np.float16) if kind == 1 else theirs)
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("name", ["coremltools_7.0_iOS15", "coremltools_7.2_iOS16"])
def test_kept_package_of_coremltools_7_has_left_over_bytes_in_its_records(name: str) -> None:
    """`test_front_ends` runs these packages; they test something only while this holds."""
    data = (PACKAGES / f"{name}.mlpackage" / "Data/com.apple.CoreML/weights/weight.bin").read_bytes()
    assert struct.unpack_from("<I4xQQQ", data, 64)[0] == 0xDEADBEEF
    assert struct.unpack_from("<I4xQQQ", data, 64)[3] > 8
