"""Speak the words that are kept here, ``train.npz`` and ``test.npz``, and write their manifest.

Run ``apt-get install espeak-ng`` and ``python -m calibration_data.keyword.pack``; about a minute.
"""

from __future__ import annotations

from pathlib import Path

from calibration_data.files import write
from calibration_data.keyword.speak import SPEAKERS, WORDS, utterances

HERE = Path(__file__).parent
KEPT = {"train": 1000, "test": 1000}


def main() -> None:
    """Write the files."""
    about = {
        "name": "Ten spoken words",
        "source": "spoken by espeak-ng 1.51 (https://github.com/espeak-ng/espeak-ng, Debian package espeak-ng), with "
        "computed noise; log-mel features by calibration_data/keyword/speak.py",
        "licence": "CC0-1.0: the features are this project's own; espeak-ng is a GPL-3.0 program, whose licence does "
        "not extend to what it says",
        "selection": f"train.npz: utterances 0 to {KEPT['train'] - 1} of those that the model was trained on; "
        f"test.npz: {KEPT['test']} by other voices",
        "classes": list(WORDS),
        "voices": {split: list(names) for split, names in SPEAKERS.items()},
    }
    write(HERE, about, {split: utterances(split, range(count)) for split, count in KEPT.items()})


if __name__ == "__main__":
    main()
