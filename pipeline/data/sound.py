"""Sound files: uncompressed WAV, as samples between -1 and 1."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np

from pipeline.core import DataError, TensorSpec, first_line
from pipeline.core.arrays import Array
from pipeline.data.images import MAX_FILE_BYTES, require_regular

EXTENSION = ".wav"
UNREAD = frozenset((".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff"))
"""Sound of formats that are not read."""


def read_sound(file: Path | bytes, spec: TensorSpec, where: str, sampling_rate: int | None = None) -> tuple[Array, int]:
    """A recording ``(*spec.shape) float32``, and its sampling rate in Hz.

    Integers become numbers between -1 and 1, as torchaudio and librosa read them.

    Args:
        file: Its path or its content.
        spec: The input: ``(T,)``, or ``(C, T)`` with the channels first.
        sampling_rate: The one that it must have; None where any will do.

    Raises:
        DataError: It is no WAV, or its rate, channels or length are not those of the input.
    """
    if isinstance(file, Path):
        require_regular(file, where, fix="correct the path")
    if (len(file) if isinstance(file, bytes) else file.stat().st_size) > MAX_FILE_BYTES:
        raise DataError(f"has more than {MAX_FILE_BYTES >> 20} MiB", where=where, fix="cut it into parts")
    rate, stored = _decoded(file, where)
    if sampling_rate is not None and rate != sampling_rate:
        raise DataError(
            f"is sampled at {rate} Hz, and the others, or data.preprocessing.sampling_rate, at {sampling_rate} Hz",
            where=where,
            fix="resample it to the rate that the model was trained with",
        )
    samples = _as_floats(stored).reshape(len(stored), -1).T
    channels = spec.shape[0] if len(spec.shape) == 2 else 1
    if len(samples) != channels:
        problem = f"has {len(samples)} channels, and {spec.name!r} takes {channels}"
        raise DataError(problem, where=where, fix="mix them, or keep those that the model was trained with")
    if samples.shape[1] != spec.shape[-1]:
        seconds, wanted = samples.shape[1] / rate, spec.shape[-1] / rate
        problem = f"has {samples.shape[1]} samples ({seconds:.2f} s), and {spec.name!r} takes {spec.shape[-1]}"
        raise DataError(f"{problem} ({wanted:.2f} s)", where=where, fix="cut it, or fill it up with zeros")
    return samples.reshape(spec.shape), rate


def is_sound_input(spec: TensorSpec) -> bool:
    """Whether recordings are what an input may take: floats ``(T,)`` or ``(C, T)``."""
    return spec.dtype.startswith("float") and len(spec.shape) in (1, 2)


def _decoded(file: Path | bytes, where: str) -> tuple[int, Array]:
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks that hold no sound
            rate, stored = wavfile.read(io.BytesIO(file) if isinstance(file, bytes) else file)
    except Exception as error:  # a damaged file fails in struct, NumPy or scipy
        fix = "write it as uncompressed WAV (PCM or float)"
        raise DataError(f"is not a readable WAV: {first_line(error)}", where=where, fix=fix) from None
    return int(rate), stored


def _as_floats(stored: Array) -> Array:
    if stored.dtype == np.uint8:
        return ((stored.astype(np.float32) - 128) / 128).astype(np.float32)
    if stored.dtype.kind == "i":
        return (stored / -float(np.iinfo(stored.dtype).min)).astype(np.float32)
    return stored.astype(np.float32)
