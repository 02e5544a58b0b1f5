"""Spoken words by Debian's ``espeak-ng``, with noise, as log-mel features.

An utterance depends on nothing but its speakers and its number, so any one of them can be made again alone.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
from scipy.signal import ShortTimeFFT, lfilter

Waveform = np.ndarray[Any, np.dtype[np.float64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-029")
SPEAKERS = {
    "train": (
        *("m1", "m2", "m3", "m4", "f1", "f2", "f3", "croak", "klatt", "klatt2", "adam", "Andrea", "Annie", "antonio"),
        *("benjamin", "boris", "caleb", "david", "edward", "gustave", "iven", "john", "linda", "marcelo", "Alicia"),
    ),
    "test": ("m5", "m6", "m7", "f4", "f5", "klatt3", "belinda", "michel", "norbert", "pablo", "paul", "shelby"),
}
RATE = 22_050
HOP, WINDOW = RATE // 50, 1024
BANDS, FRAMES = 40, 50
LOWEST_HZ, HIGHEST_HZ = 60.0, 8000.0
QUIETEST_DB, LOUDEST_DB = -40.0, 30.0
"""Power of a band that becomes 0, and 255."""


def utterances(split: str, numbers: Iterable[int]) -> dict[str, Bytes]:
    """``features (N, 40, 50)`` and ``labels (N,)`` of these words, by the ``train`` or ``test`` voices."""
    made = [(number % len(WORDS), utterance(SPEAKERS[split], number)) for number in numbers]
    return {
        "features": np.stack([features(waveform) for _, waveform in made]),
        "labels": np.array([label for label, _ in made], np.uint8),
    }


def utterance(speakers: Sequence[str], number: int) -> Waveform:
    """A second with one word and noise, at 22,050 Hz: ``(22050,)``. The words take turns."""
    random = np.random.default_rng([len(speakers), number])
    voice = f"{random.choice(ACCENTS)}+{random.choice(speakers)}"
    speed, pitch = random.integers(120, 260), random.integers(20, 81)
    spoken = _spoken(WORDS[number % len(WORDS)], voice, int(speed), int(pitch))[:RATE]
    waveform = np.zeros(RATE)
    start = random.integers(RATE - len(spoken) + 1)
    waveform[start : start + len(spoken)] = spoken
    colour = random.uniform(0, 0.97)  # from white noise to rumble
    noise = lfilter([1.0], [1.0, -colour], random.normal(size=RATE))
    ratio_db = random.uniform(3, 25)
    loudness = 10 ** (random.uniform(-10, 10) / 20)
    heard: Waveform = loudness * (waveform + 10 ** (-ratio_db / 20) * noise / noise.std())
    return heard


def _spoken(word: str, voice: str, speed: int, pitch: int) -> Waveform:
    """A word without the silence around it, with a root mean square of one."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    heard = subprocess.run(command, check=True, capture_output=True).stdout
    samples = np.frombuffer(heard, "<i2", offset=44)  # a WAV header, which gives no length to a pipe
    rate = int.from_bytes(heard[24:28], "little")
    if rate != RATE:
        raise ValueError(f"espeak-ng speaks at {rate} Hz, not {RATE}")
    loud = np.flatnonzero(np.abs(samples) > np.abs(samples).max() / 50)
    found: Waveform = samples[loud[0] : loud[-1] + 1].astype(np.float64)
    found /= np.sqrt(np.square(found).mean())
    return found


def features(waveform: Waveform) -> Bytes:
    """Log-mel features of a second, as grey values: ``(22050,) -> (40, 50) uint8``."""
    transform = ShortTimeFFT(np.hanning(WINDOW), HOP, RATE, scale_to="psd")
    power = transform.spectrogram(waveform, p0=0, p1=FRAMES) * RATE / 2  # of white noise with variance 1: about 1
    decibels = 10 * np.log10(_mel_bands() @ power + 1e-12)
    share = np.clip((decibels - QUIETEST_DB) / (LOUDEST_DB - QUIETEST_DB), 0, 1)
    found: Bytes = (share * 255).round().astype(np.uint8)
    return found


@cache
def _mel_bands() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Triangles of equal width on the mel scale, each with the sum one: ``(40, 513)``.

    ``mel = 2595 log10(1 + f / 700)`` (O'Shaughnessy 1987).
    """
    lowest, highest = (2595 * np.log10(1 + hertz / 700) for hertz in (LOWEST_HZ, HIGHEST_HZ))
    edges = 700 * (10 ** (np.linspace(lowest, highest, BANDS + 2) / 2595) - 1)
    hertz = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rising = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.clip(np.minimum(rising, falling), 0, None)
    bands: np.ndarray[Any, np.dtype[np.float64]] = triangles / triangles.sum(1, keepdims=True)
    return bands
