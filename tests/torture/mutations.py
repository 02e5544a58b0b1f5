"""Damage to a model file: to its bytes, or to the fields of its format."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

INTEGERS = (0, 1, -1, 2, 127, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**63 - 1, -(2**63))
TEXTS = ("", "file", "../../x", "/etc/passwd", "a/b", "x", "\x1b[2J", "n" * 70000, "ä", "Conv", "Loop", "conv")
REALS = (0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e-45, 3e38)


def mutate(original: Path, damaged: Path, rng: random.Random) -> str:
    """Write a damaged copy of a file or package; returns what was done to it."""
    if original.is_dir():
        shutil.copytree(original, damaged)
        files = sorted(file for file in damaged.rglob("*") if file.is_file())
        file = rng.choices(files, [1 if each.name == "Manifest.json" else 4 for each in files])[0]
    else:
        shutil.copyfile(original, damaged)
        file = damaged
    content = file.read_bytes()
    fields = _FIELDS.get(file.suffix)
    for _ in range(20):
        change = fields if fields is not None and rng.random() < 0.6 else rng.choice(BYTES)
        try:
            result = change(content, rng)
        except (ValueError, TypeError, OverflowError, UnicodeError):  # the format has no place for that value
            continue
        if result != content:
            break
    file.write_bytes(result)
    return f"{change.__name__.strip('_')} of {file.name}"


def _flip_bits(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _splice(content: bytes, rng: random.Random) -> bytes:
    """Copy some bytes to another place, over what is there or in front of it."""
    start, place = rng.randrange(len(content)), rng.randrange(len(content))
    piece = content[start : start + rng.choice((1, 4, 16, 200))]
    return content[:place] + piece + content[place + rng.choice((0, len(piece))) :]


def _delete(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.choice((1, 4, 16, 200)) :]


def _extreme_word(content: bytes, rng: random.Random) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    place = rng.randrange(max(1, len(content) // size)) * size
    word = (rng.choice(INTEGERS) % (1 << 8 * size)).to_bytes(size, "little")
    return content[:place] + word + content[place + size :]


def _noise(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + rng.randbytes(rng.choice((4, 40, 400))) + content[start + 40 :]


BYTES = (_flip_bits, _flip_bits, _truncate, _splice, _delete, _extreme_word, _noise)


def _onnx_fields(content: bytes, rng: random.Random) -> bytes:
    import onnx

    return _change_message(onnx.ModelProto(), content, rng)


def _coreml_fields(content: bytes, rng: random.Random) -> bytes:
    from targets.coreml.sdk import coremltools

    coremltools()
    from coremltools.proto import Model_pb2

    return _change_message(Model_pb2.Model(), content, rng)


def _change_message(message: Any, content: bytes, rng: random.Random) -> bytes:
    """Change, remove or repeat a few fields anywhere in a protobuf message."""
    message.ParseFromString(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holders = list(_messages(message))
        holder = rng.choice(holders)
        field, value = rng.choice(holder.ListFields() or message.ListFields())
        if not any(each is field for each, _ in holder.ListFields()):
            holder = message
        _change_field(holder, field, value, holders, rng)
    result: bytes = message.SerializePartialToString()
    return result


def _messages(message: Any) -> Any:
    yield message
    for field, value in message.ListFields():
        if field.type != field.TYPE_MESSAGE:
            continue
        for item in _items(field, value):
            yield from _messages(item)


def _items(field: Any, value: Any) -> list[Any]:
    if not field.is_repeated:
        return [value]
    if hasattr(value, "values") and hasattr(value, "items"):  # a map
        return [each for each in value.values() if hasattr(each, "ListFields")]
    return list(value)


def _change_field(holder: Any, field: Any, value: Any, holders: list[Any], rng: random.Random) -> None:
    if rng.random() < 0.15:
        holder.ClearField(field.name)
    elif field.is_repeated and not hasattr(value, "values"):
        _change_list(field, value, rng)
    elif field.type == field.TYPE_MESSAGE:
        same = [each for each in holders if type(each) is type(value)]
        if same:
            copy = type(value)()  # the other may hold this one
            copy.CopyFrom(rng.choice(same))
            value.CopyFrom(copy)
    elif not field.is_repeated:
        setattr(holder, field.name, _extreme(field, rng))


def _change_list(field: Any, values: Any, rng: random.Random) -> None:
    position = rng.randrange(len(values))
    if rng.random() < 0.3:
        del values[position]
    elif field.type == field.TYPE_MESSAGE:
        copy = type(values[position])()
        copy.CopyFrom(values[position])
        values.add().CopyFrom(copy)
    elif rng.random() < 0.3:
        values.append(values[position])
    else:
        values[position] = _extreme(field, rng)


def _extreme(field: Any, rng: random.Random) -> Any:
    if field.type == field.TYPE_STRING:
        return rng.choice(TEXTS)
    if field.type == field.TYPE_BYTES:
        return rng.choice(TEXTS).encode() or rng.randbytes(rng.choice((1, 7, 64)))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return rng.choice(REALS)
    if field.type == field.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type == field.TYPE_ENUM:
        return rng.choice([*field.enum_type.values_by_number, 99])
    return rng.choice(INTEGERS)


def _tflite_fields(content: bytes, rng: random.Random) -> bytes:
    """Set a few numbers, lists and names anywhere in a flatbuffer's objects to extremes."""
    from targets.tflite.flatbuffer import read_model, serialize

    model = read_model(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_attributes(model))
        holder, name = rng.choice(places)
        setattr(holder, name, _other(getattr(holder, name), rng))
    return serialize(model)


def _attributes(thing: Any) -> Any:
    for name, value in vars(thing).items():
        yield thing, name
        for item in value if isinstance(value, list) else [value]:
            if hasattr(item, "Pack"):
                yield from _attributes(item)


def _other(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bytes):
        return rng.choice(TEXTS).encode()
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((*INTEGERS, *range(40)))
    if isinstance(value, float):
        return rng.choice(REALS)
    if value is None or hasattr(value, "Pack"):
        return None
    items = list(value)
    if not items or rng.random() < 0.1:
        return []
    position = rng.randrange(len(items))
    if hasattr(items[0], "Pack"):
        return items[:position] + items[position + 1 :] if rng.random() < 0.5 else [*items, items[position]]
    if rng.random() < 0.3:
        return items[:position] + items[position + 1 :]
    whole = isinstance(items[position], int)
    items[position] = rng.choice(INTEGERS) if whole else type(items[position])(rng.choice((0, 1, 2, 255)))
    return items


_FIELDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".onnx": _onnx_fields,
    ".tflite": _tflite_fields,
    ".mlmodel": _coreml_fields,
}
