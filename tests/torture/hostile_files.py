"""Files that attack whoever opens them, each with the command that opens it.

An attack that runs code writes a marker file; one that leads out of its folder names one; the others ask for memory or
time without end.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.pipeline.models import pt2_attacks

HUGE_BYTES = 3 << 30
"""What a bomb unpacks to: more than a run may take here, and as long to write as a test can wait."""


@dataclass(frozen=True)
class Hostile:
    """A file and how it is opened.

    Attributes:
        door: ``checkpoint``, ``npz``, ``images``, ``recipe``, ``model`` (run and inspect) or ``samples``.
        file: Its name; for images in a class folder.
        write: Writes it; called with its path and the marker's.
    """

    name: str
    door: str
    file: str
    write: Callable[[Path, Path], object]


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def shell(marker: Path) -> Calls:
    return Calls(os.system, f"touch {marker}")


def content(data: bytes | str) -> Callable[[Path, Path], object]:
    return lambda path, _: path.write_bytes(data.encode() if isinstance(data, str) else data)


def pickled(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(shell(marker)))


def pickled_eval(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": Calls(eval, f"open({str(marker)!r}, 'w')")}))


def torch_saved(path: Path, marker: Path, *, legacy: bool = False, key: str = "0.weight") -> None:
    torch.save({key: shell(marker)}, path, _use_new_zipfile_serialization=not legacy)


def compressed_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(gzip.compress(pickle.dumps(shell(marker))))


def tar_of_pickles(path: Path, marker: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle", "../../escaped"):
            data = pickle.dumps(shell(marker))
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def zipped(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def zip_slip(path: Path, marker: Path) -> None:
    data = pickle.dumps(shell(marker))
    zipped(path, {f"../{marker.name}": b"x", str(marker): b"x", "archive/data.pkl": data, "archive/version": b"3"})


def scripted(path: Path, _: Path) -> None:
    module = torch.jit.trace(torch.nn.Linear(4, 3), torch.ones(1, 4), check_trace=False)
    torch.jit.save(module, str(path))


def keras(path: Path, marker: Path) -> None:
    code = f"__import__('os').system('touch {marker}')"
    layer = {"class_name": "Lambda", "config": {"function": {"class_name": "__lambda__", "config": {"code": code}}}}
    config = {"class_name": "Sequential", "config": {"layers": [layer]}}
    zipped(path, {"config.json": json.dumps(config).encode(), "metadata.json": b"{}", "model.weights.h5": b"\x89HDF"})


HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(200) + b"Lambda"


def npy(shape: tuple[int, ...], descr: Any = "|u1", data: bytes = b"") -> bytes:
    """An array file that states a shape, whatever it holds."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npz(**arrays: bytes) -> Callable[[Path, Path], None]:
    return lambda path, _: zipped(path, {f"{name}.npy": data for name, data in arrays.items()})


def zip_bomb(path: Path, _: Path) -> None:
    """An array of zeros that is honest about its size, in a small file."""
    header = npy((HUGE_BYTES // 64, 8, 8))
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = engine.compress(bytes(1 << 20)) + engine.flush(zlib.Z_FULL_FLUSH)
    first = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = first.compress(header) + first.flush(zlib.Z_FULL_FLUSH) + block
    again = engine.compress(bytes(1 << 20)) + engine.flush(zlib.Z_FULL_FLUSH)
    data += again * (HUGE_BYTES // (1 << 20) - 1) + zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    name = b"images.npy"
    size = HUGE_BYTES + len(header)
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, 0, len(data), size, len(name), 0)
    local = b"PK\x03\x04" + fields + name + data
    central = b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    path.write_bytes(local + central + end)


def object_arrays(path: Path, marker: Path) -> None:
    np.savez(path, images=np.array([shell(marker)] * 3, dtype=object))


def pickled_member(path: Path, marker: Path) -> None:
    zipped(path, {"images.npy": pickle.dumps(shell(marker)), "labels.npy": pickle.dumps(shell(marker))})


def many_members(path: Path, _: Path) -> None:
    zipped(path, {f"array{number}.npy": b"" for number in range(20_000)})


def fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def link(target: str) -> Callable[[Path, Path], object]:
    return lambda path, _: path.symlink_to(target)


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> Callable[[Path, Path], object]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return content(struct.pack("<Q", len(text) if length is None else length) + text + data)


def stored(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"0.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def expanded_weight(path: Path, _: Path) -> None:
    """One number that stands for 4 TiB: as large as it looks wherever it is copied."""
    torch.save({"0.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)


def overlapping_weight(path: Path, _: Path) -> None:
    """Strides that lead out of the storage."""
    tensor = Calls(
        torch._utils._rebuild_tensor_v2, torch.zeros(4).untyped_storage(), 0, (16, 1, 3, 3), (9, 9, 3, 1 << 40)
    )
    path.write_bytes(pickle.dumps({"0.weight": tensor}))


def pt2(attack: Callable[[pt2_attacks.Archive, str], None], path: Path, marker: Path) -> None:
    written, its_marker = pt2_attacks.write(attack, path.parent)
    assert its_marker == marker
    written.rename(path)


def png(width: int, height: int, data: bytes = b"", *extra: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    chunks = [header, *extra, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def text_bomb() -> bytes:
    body = b"comment\0\0" + zlib.compress(bytes(100 << 20), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return png(8, 8, zlib.compress(bytes(72)), chunk)


def tiff(width: int, height: int) -> bytes:
    entries = ((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
               (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 1 << 31))  # fmt: skip
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


BMP = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, *[(1 << 31) - 1] * 2, 1, 24, *[0] * 6)
GIF = b"GIF89a" + b"\xff" * 4 + b"\0\0\0," + bytes(4) + b"\xff" * 4 + b"\0\x02;"


def postscript(path: Path, marker: Path) -> None:
    path.write_text(f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n({marker}) (w) file closefile\nshowpage\n")


def svg(path: Path, marker: Path) -> None:
    path.write_text(f"<svg xmlns='http://www.w3.org/2000/svg'><image href='file://{marker}'/><script>x</script></svg>")


def yaml_tag(tag: str) -> Callable[[Path, Path], object]:
    return lambda path, marker: path.write_text(f"name: !!python/{tag} ['touch {marker}']\n")


def laughs(path: Path, _: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path.write_text("\n".join(lines))


def onnx_with(location: str) -> Callable[[Path, Path], object]:
    """A weight that lies in another file."""

    def write(path: Path, _: Path) -> None:
        from onnx import TensorProto, helper

        weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", "0"), ("length", "16")):
            weight.external_data.add(key=key, value=value)
        save_onnx(path, [helper.make_node("Add", ["x", "w"], ["y"])], [weight])

    return write


def save_onnx(path: Path, nodes: list[Any], weights: list[Any]) -> None:
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())


def onnx_of_endless_memory(path: Path, _: Path) -> None:
    from onnx import helper, numpy_helper

    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20, 4]), "shape")
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["z"]), helper.make_node("Add", ["x", "z"], ["y"])]
    save_onnx(path, nodes, [shape])


def onnx_of_an_unknown_operator(path: Path, marker: Path) -> None:
    from onnx import helper

    node = helper.make_node("PyOp", ["x"], ["y"], domain="ai.onnx.contrib", module=str(marker), compute="os.system")
    save_onnx(path, [node], [])


def package(manifest: Any) -> Callable[[Path, Path], object]:
    def write(path: Path, _: Path) -> None:
        path.mkdir()
        (path / "Manifest.json").write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))

    return write


def manifest_of(path: str) -> dict[str, Any]:
    entry = {"author": "com.apple.CoreML", "description": "", "name": "model.mlmodel", "path": path}
    return {"fileFormatVersion": "1.0.0", "itemInfoEntries": {"A": entry}, "rootModelIdentifier": "A"}


CHECKPOINTS: tuple[Hostile, ...] = (
    Hostile("pickle", "checkpoint", "model.pt", pickled),
    Hostile("pickle that calls eval", "checkpoint", "model.pth", pickled_eval),
    Hostile("pickle in torch's archive", "checkpoint", "model.pt", torch_saved),
    Hostile("pickle in torch's old format", "checkpoint", "model.pt", partial(torch_saved, legacy=True)),
    Hostile("pickle under another name", "checkpoint", "model.bin", partial(torch_saved, key="state_dict")),
    Hostile("compressed pickle", "checkpoint", "model.pt", compressed_pickle),
    Hostile("tar of pickles", "checkpoint", "model.pt", tar_of_pickles),
    Hostile("pickle called safetensors", "checkpoint", "model.safetensors", pickled),
    Hostile("pickle called pt2", "checkpoint", "model.pt2", pickled),
    Hostile("pickled array as weights", "checkpoint", "model.pt",
            lambda path, marker: np.save(path.open("wb"), np.array([shell(marker)], dtype=object))),
    Hostile("paths out of a pt", "checkpoint", "model.pt", zip_slip),
    Hostile("paths out of a pt2", "checkpoint", "model.pt2", zip_slip),
    Hostile("TorchScript as pt", "checkpoint", "model.pt", scripted),
    Hostile("TorchScript as pth", "checkpoint", "model.pth", scripted),
    Hostile("TorchScript as pt2", "checkpoint", "model.pt2", scripted),
    Hostile("Keras with a Lambda", "checkpoint", "model.keras", keras),
    Hostile("Keras called pt", "checkpoint", "model.pt", keras),
    Hostile("Keras called pt2", "checkpoint", "model.pt2", keras),
    Hostile("HDF5", "checkpoint", "model.h5", content(HDF5)),
    Hostile("HDF5 called safetensors", "checkpoint", "model.safetensors", content(HDF5)),
    Hostile("weight of 4 TiB in 4 bytes", "checkpoint", "model.pt", expanded_weight),
    Hostile("weight beyond its storage", "checkpoint", "model.pt", overlapping_weight),
    Hostile("header of 8 EiB", "checkpoint", "model.safetensors", safetensors({}, length=1 << 63)),
    Hostile("header longer than the file", "checkpoint", "model.safetensors", safetensors({}, length=1 << 20)),
    Hostile("header of deep JSON", "checkpoint", "model.safetensors", safetensors(b"[" * 100_000)),
    Hostile("weight of 4 EiB", "checkpoint", "model.safetensors", safetensors(stored([1 << 60], [0, 1 << 62]))),
    Hostile("weight of overflowing size", "checkpoint", "model.safetensors", safetensors(stored([1 << 62, 4], [0, 0]))),
    Hostile("weight past the end", "checkpoint", "model.safetensors", safetensors(stored([16, 1, 3, 3], [4096, 4672]))),
    Hostile("weight of negative size", "checkpoint", "model.safetensors", safetensors(stored([-1], [0, 4]), bytes(4))),
    Hostile("weight of an unknown type", "checkpoint", "model.safetensors", safetensors(stored([0], [0, 0], "eval"))),
    Hostile("pipe as weights", "checkpoint", "model.safetensors", fifo),
    Hostile("device as weights", "checkpoint", "model.safetensors", link("/dev/zero")),
    Hostile("device as pt2", "checkpoint", "model.pt2", link("/dev/zero")),
    Hostile("link to itself as weights", "checkpoint", "model.safetensors", link("model.safetensors")),
    *(Hostile(f"pt2: {each.__name__}", "checkpoint", "model.pt2", partial(pt2, each)) for each in pt2_attacks.ATTACKS),
)  # fmt: skip

ARRAYS: tuple[Hostile, ...] = (
    Hostile("array of 1 EiB", "npz", "train.npz", npz(images=npy((1 << 54, 8, 8)))),
    Hostile("array of overflowing size", "npz", "train.npz", npz(images=npy((1 << 62, 1 << 62)))),
    Hostile("array of negative size", "npz", "train.npz", npz(images=npy((-1, 8, 8)))),
    Hostile("array of 1 TiB items", "npz", "train.npz", npz(images=npy((4,), "|V1099511627776"))),
    Hostile("array of code", "npz", "train.npz", npz(images=npy((4,), "__import__('os').system('x')"))),
    Hostile("array of nested objects", "npz", "train.npz", npz(images=npy((4,), [("a", "|O")], bytes(32)))),
    Hostile("array of a later version", "npz", "train.npz", npz(images=b"\x93NUMPY\x09\x00" + bytes(100))),
    Hostile("array with a header of 4 GiB", "npz", "train.npz", npz(images=b"\x93NUMPY\x02\x00\xff\xff\xff\xff")),
    Hostile("array shorter than stated", "npz", "train.npz", npz(images=npy((1 << 28, 8, 8), data=bytes(64)))),
    Hostile("objects in an npz", "npz", "train.npz", object_arrays),
    Hostile("pickles in an npz", "npz", "train.npz", pickled_member),
    Hostile("pickle called npz", "npz", "train.npz", pickled),
    Hostile("zip bomb", "npz", "train.npz", zip_bomb),
    Hostile("npz of 20,000 members", "npz", "train.npz", many_members),
    Hostile("pipe as npz", "npz", "train.npz", fifo),
    Hostile("device as npz", "npz", "train.npz", link("/dev/zero")),
)  # fmt: skip

IMAGES: tuple[Hostile, ...] = (
    Hostile("PostScript called png", "images", "0.png", postscript),
    Hostile("EPS called jpg", "images", "0.jpg", postscript),
    Hostile("PDF called png", "images", "0.png", content("%PDF-1.7\n1 0 obj <</OpenAction 2 0 R>>")),
    Hostile("PSD called png", "images", "0.png", content(b"8BPS\0\x01" + bytes(6) + b"\0\x03" + b"\xff" * 8)),
    Hostile("SVG called png", "images", "0.png", svg),
    Hostile("WMF called bmp", "images", "0.bmp", content(b"\xd7\xcd\xc6\x9a" + bytes(60))),
    Hostile("FITS called tiff", "images", "0.tiff", content("SIMPLE  =                    T" + " " * 2850)),
    Hostile("XBM called gif", "images", "0.gif", content("#define x_width 99999\n#define x_height 99999\n")),
    Hostile("ICNS called png", "images", "0.png", content(b"icns" + b"\xff" * 60)),
    Hostile("PNG of 3.6 gigapixels", "images", "0.png", content(png(60_000, 60_000))),
    Hostile("PNG of 2^62 pixels", "images", "0.png", content(png((1 << 31) - 1, (1 << 31) - 1))),
    Hostile("PNG with a text of 100 MiB", "images", "0.png", lambda path, _: path.write_bytes(text_bomb())),
    Hostile("PNG without pixels", "images", "0.png", content(png(64, 64, zlib.compress(b"")))),
    Hostile("TIFF of 4 gigapixels", "images", "0.tiff", content(tiff(65_535, 65_535))),
    Hostile("BMP of 2^62 pixels", "images", "0.bmp",
            content(BMP)),
    Hostile("GIF of 65,535 x 65,535", "images", "0.gif", content(GIF)),
    Hostile("WebP that states 4 GiB", "images", "0.webp", content(b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\xff")),
    Hostile("pipe as png", "images", "0.png", fifo),
    Hostile("device as png", "images", "0.png", link("/dev/zero")),
    Hostile("password file as png", "images", "0.png", link("/etc/passwd")),
    Hostile("link to itself as png", "images", "0.png", link("0.png")),
)  # fmt: skip

RECIPES: tuple[Hostile, ...] = (
    Hostile("tag that calls", "recipe", "recipe.yaml", yaml_tag("object/apply:os.system")),
    Hostile("tag that makes", "recipe", "recipe.yaml", yaml_tag("object/new:os.system")),
    Hostile("tag that names", "recipe", "recipe.yaml", yaml_tag("name:os.system")),
    Hostile("tag that imports", "recipe", "recipe.yaml", yaml_tag("module:antigravity")),
    Hostile("a billion laughs", "recipe", "recipe.yaml", laughs),
    Hostile("alias of itself", "recipe", "recipe.yaml", content("name: &a [*a]\nmodel: *a\n")),
    Hostile("merge of itself", "recipe", "recipe.yaml", content("name: &a\n  <<: *a\n")),
    Hostile("deep YAML", "recipe", "recipe.yaml", content("name: " + "[" * 100_000)),
    Hostile("number of 100,000 digits", "recipe", "recipe.yaml", content("seed: " + "9" * 100_000)),
    Hostile("name of 10 MB", "recipe", "recipe.yaml", content("name: " + "x" * 10_000_000)),
    Hostile("control characters", "recipe", "recipe.yaml", content("name: \x1b[2J\x1b]0;x\x07\n")),
    Hostile("pipe as recipe", "recipe", "recipe.yaml", fifo),
    Hostile("device as recipe", "recipe", "recipe.yaml", link("/dev/zero")),
    Hostile("link to itself as recipe", "recipe", "recipe.yaml", link("recipe.yaml")),
)  # fmt: skip

MODELS: tuple[Hostile, ...] = (
    *(Hostile(f"pickle called {end}", "model", f"model{end}", pickled) for end in (".onnx", ".tflite", ".mlpackage")),
    *(Hostile(f"TorchScript called {end}", "model", f"model{end}", scripted) for end in (".pt", ".pt2", ".onnx")),
    *(Hostile(f"Keras called {end}", "model", f"model{end}", keras) for end in (".keras", ".tflite", ".onnx")),
    Hostile("HDF5 to run", "model", "model.h5", content(HDF5)),
    Hostile("weights to run", "model", "model.pth", torch_saved),
    Hostile("weight in the password file", "model", "model.onnx", onnx_with("/etc/passwd")),
    Hostile("weight above the folder", "model", "model.onnx", onnx_with("../../../../../../etc/passwd")),
    Hostile("weight in a device", "model", "model.onnx", onnx_with("/dev/zero")),
    Hostile("constant of 16 TiB", "model", "model.onnx", onnx_of_endless_memory),
    Hostile("operator in Python", "model", "model.onnx", onnx_of_an_unknown_operator),
    Hostile("package above its folder", "model", "model.mlpackage", package(manifest_of("../../../etc/passwd"))),
    Hostile("package in the password file", "model", "model.mlpackage", package(manifest_of("/etc/passwd"))),
    Hostile("package of deep JSON", "model", "model.mlpackage", package("[" * 100_000)),
    Hostile("pipe to run", "model", "model.onnx", fifo),
    Hostile("device to run", "model", "model.tflite", link("/dev/zero")),
)  # fmt: skip

SAMPLES: tuple[Hostile, ...] = (
    Hostile("objects as samples", "samples", "in.npz",
            lambda path, marker: np.savez(path, x=np.array([shell(marker)], dtype=object))),
    Hostile("samples of 1 EiB", "samples", "in.npz", npz(x=npy((1 << 58, 4), "<f4"))),
    Hostile("bomb as samples", "samples", "in.npz", zip_bomb),
    Hostile("pipe as samples", "samples", "in.npz", fifo),
    Hostile("device as samples", "samples", "in.npz", link("/dev/zero")),
)  # fmt: skip

HOSTILE = (*CHECKPOINTS, *ARRAYS, *IMAGES, *RECIPES, *MODELS, *SAMPLES)
