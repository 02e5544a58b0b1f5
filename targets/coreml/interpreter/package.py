"""Reading a ``.mlpackage``: the manifest, the model specification and the weight files, with hard bounds.

A package may come from anywhere. Nothing outside its folder is read, no stated size is believed before it is checked
against the file, and every refusal names the file and what is wrong with it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.core import EdgewrightError
from targets.coreml.sdk import coremltools

Array = np.ndarray[Any, np.dtype[Any]]

MAX_MANIFEST_BYTES = 1 << 20
MAX_MODEL_BYTES = (1 << 31) - 1  # the limit of a protobuf message
NEWEST_SPECIFICATION = 10  # iOS 26 and macOS 26
FIRST_MIL_SPECIFICATION = 6  # iOS 15 and macOS 12


class PackageError(EdgewrightError):
    """A Core ML package is missing, damaged, or of a kind that cannot be read here."""


@dataclass(frozen=True)
class Package:
    """A package whose parts have been found.

    Attributes:
        specification: The ``Model`` message of ``model.mlmodel``
            (https://apple.github.io/coremltools/mlmodel/Format/Model.html).
        folder: The package itself.
        model_folder: Where ``@model_path`` in weight references points to.
    """

    specification: Any
    folder: Path
    model_folder: Path

    def weights(self, reference: str) -> WeightFile:
        """The weight file that a blob reference such as ``@model_path/weights/weight.bin`` names.

        Raises:
            PackageError: It is missing, or lies outside the package.
        """
        name = reference.removeprefix("@model_path/")
        return WeightFile(_inside(self.model_folder, name, self.folder, what="weight file"))


def read_package(path: Path) -> Package:
    """Find and check the parts of a package; weights are not read yet.

    Raises:
        PackageError: No such folder; the manifest or the specification is missing, truncated, too large, of another
            kind than an ML Program, or of a newer version; a path leads out of the package.
    """
    if not path.is_dir():
        problem = "is a file, not a package folder" if path.exists() else "no such package"
        raise PackageError(problem, where=str(path), fix="give the path of a .mlpackage folder")
    model = _inside(path / "Data", _model_path(path), path, what="model specification")
    specification = _read_specification(model)
    return Package(specification, path, model.parent)


def _model_path(package: Path) -> str:
    """The root item's path in the manifest (coremltools' ``modelpackage`` format 1.0.0)."""
    manifest = package / "Manifest.json"
    try:
        if manifest.stat().st_size > MAX_MANIFEST_BYTES:
            raise PackageError(f"is larger than {MAX_MANIFEST_BYTES} bytes", where=str(manifest))
        entries = json.loads(manifest.read_bytes())
        root = entries["itemInfoEntries"][entries["rootModelIdentifier"]]["path"]
    except FileNotFoundError:
        raise PackageError("has no Manifest.json", where=str(package), fix="is this a .mlpackage folder?") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PackageError(f"is not a package manifest: {error!r}", where=str(manifest)) from None
    if not isinstance(root, str):
        raise PackageError("names a root model whose path is not text", where=str(manifest))
    return root


def _inside(folder: Path, name: str, package: Path, *, what: str) -> Path:
    """A regular file under ``folder``, with symbolic links resolved, that lies in the package."""
    found = folder / PurePosixPath(name)
    if "\0" in name or not found.resolve().is_relative_to(package.resolve()):
        raise PackageError(f"names a {what} outside itself: {name!r}", where=str(package))
    if not found.is_file():
        raise PackageError(f"has no {what} {name!r}", where=str(package), fix="copy the whole package folder")
    return found


def _read_specification(path: Path) -> Any:
    coremltools()
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    size = path.stat().st_size
    if size > MAX_MODEL_BYTES:
        raise PackageError(f"has {size} bytes, more than a specification can", where=str(path))
    specification = Model_pb2.Model()
    try:
        specification.ParseFromString(path.read_bytes())
    except DecodeError:
        raise PackageError("is not a Core ML specification: truncated, or encrypted", where=str(path)) from None
    version = specification.specificationVersion
    if version > NEWEST_SPECIFICATION:
        raise PackageError(
            f"has specification version {version}; versions up to {NEWEST_SPECIFICATION} are known",
            where=str(path),
            fix="convert with an older minimum_deployment_target",
        )
    kind = specification.WhichOneof("Type")
    if kind != "mlProgram":
        raise PackageError(
            f"holds a {kind or 'model of no kind'}, not an ML Program",
            where=str(path),
            fix="convert with minimum_deployment_target iOS15 or newer",
        )
    if version < FIRST_MIL_SPECIFICATION:
        raise PackageError(f"has specification version {version}, older than ML Programs", where=str(path))
    return specification


@dataclass(frozen=True)
class _Blob:
    """How one blob data type is stored.

    Attributes:
        dtype: The NumPy type of whole bytes.
        bits: Of an integer that is packed with others into bytes.
        signed: Whether that integer has a sign.
        decode: From the stored integers to float32, for a float that NumPy does not have.
    """

    dtype: str
    bits: int | None = None
    signed: bool = False
    decode: Callable[[Array], Array] | None = None


def _from_bfloat16(stored: Array) -> Array:
    values: Array = (stored.astype(np.uint32) << 16).view(np.float32)
    return values


def _float8_values(fraction_bits: int, *, has_infinity: bool) -> Array:
    """The float32 values of the 256 codes of an 8-bit float (https://arxiv.org/abs/2209.05433).

    >>> float(_float8_values(3, has_infinity=False)[0x7E]), float(_float8_values(2, has_infinity=True)[0x7B])
    (448.0, 57344.0)
    """
    codes = np.arange(256)
    exponent_bits = 7 - fraction_bits
    bias, largest = (1 << (exponent_bits - 1)) - 1, (1 << exponent_bits) - 1
    exponent, fraction = (codes >> fraction_bits) & largest, codes & ((1 << fraction_bits) - 1)
    normal = exponent > 0
    values = np.ldexp(normal + fraction / (1 << fraction_bits), np.maximum(exponent, 1) - bias)
    if has_infinity:
        values[exponent == largest] = np.where(fraction[exponent == largest] == 0, np.inf, np.nan)
    else:
        values[(codes & 0x7F) == 0x7F] = np.nan
    return np.asarray(np.where(codes & 0x80, -values, values), np.float32)


_FLOAT8_E4M3FN, _FLOAT8_E5M2 = _float8_values(3, has_infinity=False), _float8_values(2, has_infinity=True)

_BLOBS = {
    1: _Blob("<f2"),
    2: _Blob("<f4"),
    3: _Blob("u1"),
    4: _Blob("i1"),
    5: _Blob("<u2", decode=_from_bfloat16),
    6: _Blob("<i2"),
    7: _Blob("<u2"),
    8: _Blob("i1", bits=4, signed=True),
    9: _Blob("u1", bits=1),
    10: _Blob("u1", bits=2),
    11: _Blob("u1", bits=4),
    12: _Blob("u1", bits=3),
    13: _Blob("u1", bits=6),
    14: _Blob("<i4"),
    15: _Blob("<u4"),
    16: _Blob("u1", decode=_FLOAT8_E4M3FN.take),
    17: _Blob("u1", decode=_FLOAT8_E5M2.take),
}
"""The ``BlobDataType`` numbers of coremltools' ``mlmodel/src/MILBlob/Blob/BlobDataType.hpp``."""


class WeightFile:
    """A MIL blob file, version 2: a 64-byte header, then for each tensor a 64-byte record and its aligned data.

    Layout: coremltools' ``mlmodel/src/MILBlob/Blob/StorageFormat.hpp``. Every coremltools has written version 2;
    version 1 is another format, of compiled neural networks. Before iOS 18 the fields of a record behind the first
    four were not initialised, so they hold anything. The first of them, the number of unused bits, came with the
    packed types and means something for those alone.
    """

    _HEADER = struct.Struct("<II56x")
    _RECORD = struct.Struct("<IIQQQ32x")
    _SENTINEL = 0xDEADBEEF

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes: Array = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        if len(self._bytes) < self._HEADER.size:
            raise PackageError("is truncated: it has no header", where=str(path))
        _, version = self._HEADER.unpack(self._bytes[: self._HEADER.size].tobytes())
        if version != 2:
            raise PackageError(f"has blob version {version}; version 2 is known", where=str(path))

    def read(self, offset: int, count: int) -> Array:
        """The flat array of ``count`` elements whose record stands at ``offset``.

        Packed integers are unpacked; floats that NumPy does not have (bfloat16, float8) become float32.

        Raises:
            PackageError: The record or its data lies outside the file, or does not hold ``count`` elements.
        """
        where = f"{self._path}: blob at byte {offset}"
        if offset + self._RECORD.size > len(self._bytes):
            raise PackageError(f"is truncated: the file has {len(self._bytes)} bytes", where=where)
        record = self._bytes[offset : offset + self._RECORD.size].tobytes()
        sentinel, kind, size, start, padding = self._RECORD.unpack(record)
        if sentinel != self._SENTINEL:
            raise PackageError("is not a blob record", where=where)
        if kind not in _BLOBS:
            raise PackageError(f"has unknown data type {kind}", where=where)
        if start + size > len(self._bytes):
            raise PackageError(
                f"claims bytes {start} to {start + size}, but the file has {len(self._bytes)}", where=where
            )
        blob, data = _BLOBS[kind], self._bytes[start : start + size]
        width = blob.bits or np.dtype(blob.dtype).itemsize * 8
        unused = padding if blob.bits else 0
        if unused >= 8 or size * 8 - unused != count * width:
            raise PackageError(f"holds {size} bytes, but its tensor has {count} elements of {width} bits", where=where)
        if blob.bits is not None:
            return unpack_bits(data, blob.bits, count, signed=blob.signed)
        stored = data.view(blob.dtype) if data.size else np.empty(0, blob.dtype)
        return stored if blob.decode is None else blob.decode(stored)


def unpack_bits(data: Array, bits: int, count: int, *, signed: bool = False) -> Array:
    """Integers of ``bits`` bits, packed from the least significant bit of the first byte upwards.

    >>> unpack_bits(np.array([0x21, 0x03], np.uint8), 4, 3)
    array([1, 2, 3], dtype=uint8)
    >>> unpack_bits(np.array([0x2F, 0x0D], np.uint8), 4, 3, signed=True)
    array([-1,  2, -3], dtype=int8)
    """
    planes = np.unpackbits(data, bitorder="little")[: count * bits].reshape(count, bits)
    values: Array = (planes << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    if not signed:
        return values
    sign = np.int8(1 << (bits - 1))
    signed_values: Array = (values.astype(np.int8) ^ sign) - sign
    return signed_values
