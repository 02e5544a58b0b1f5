"""Samples in an image folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from pipeline.core import DataError, TensorSpec, did_you_mean
from pipeline.core.arrays import Array
from pipeline.core.files import require_folder
from pipeline.data import sound
from pipeline.data.images import EXTENSIONS, read_image
from pipeline.data.samples import Source

_HIDDEN = ("__MACOSX", "__pycache__", "@eaDir", "lost+found")
"""What systems leave behind without a dot before its name."""
_UNREAD = frozenset(
    (".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".tga", ".psd", ".exr", ".hdr",
     ".dcm", ".dng", ".cr2", ".nef", ".arw", ".svg", ".ico")
)  # fmt: skip
"""Images of formats that are not read: to leave them out would be to lose samples."""


@dataclass(frozen=True, slots=True)
class Files:
    """A kind of files that samples are read from.

    Attributes:
        what: As messages call one.
        extensions: Of those that are read.
        unread: Of others of the kind, which are refused.
    """

    what: str
    extensions: frozenset[str]
    unread: frozenset[str]

    def holds(self, entry: Path) -> bool:
        """Whether an entry is such a file, by its name."""
        return entry.suffix.lower() in self.extensions

    @property
    def listed(self) -> str:
        """What is read, for messages."""
        return ", ".join(sorted(self.extensions))


IMAGES = Files("image", EXTENSIONS, _UNREAD)
RECORDINGS = Files("recording", frozenset((sound.EXTENSION,)), sound.UNREAD)


class FolderSource(Source):
    """Images or recordings under one subfolder per class, at any depth; decoded on demand.

    Args:
        spec: The model's input, which says which of the two they are.
        classes: The names of classes 0, 1, …; by default those of the folders in sorted order.
        labelled: Whether folders are classes; if not, every image below the folder is a sample without a label.

    Raises:
        DataError: There are no images, a folder is of no known class, or an image is of no class or cannot be read.
    """

    def __init__(self, path: Path, spec: TensorSpec, classes: Sequence[str] = (), *, labelled: bool = True) -> None:
        self.where = self.labels_where = str(path)
        self.labelled, self.one_by_one, self._spec = labelled, True, spec
        self._of = RECORDINGS if sound.is_sound_input(spec) else IMAGES
        require_folder(path)
        try:
            self._files = self._classed(path, tuple(classes)) if labelled else self._unlabelled(path)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", where=str(error.filename), fix="allow it") from None

    def _unlabelled(self, path: Path) -> list[tuple[Path, int]]:
        found = Found.below(path, self._of)
        if not found.images:
            problem = f"holds no {self._of.what} ({self._of.listed})"
            raise DataError(problem, where=self.where, fix=f"add {self._of.what}s")
        self.notes = found.notes(path)
        return [(file, 0) for file in found.images]

    def _classed(self, path: Path, known: tuple[str, ...]) -> list[tuple[Path, int]]:
        folders = [entry for entry in _visible(path) if entry.is_dir()]
        if not folders:
            problem = f"holds {_some(path)}, and no class folders"
            fix = f"make one subfolder per class, or read the {self._of.what}s without labels: labels: null"
            raise DataError(problem, where=self.where, fix=fix)
        self._require_known(folders, known)
        found = {folder.name: Found.below(folder, self._of) for folder in folders}
        loose = next((file for file in _visible(path) if file.is_file() and self._of.holds(file)), None)
        if loose is not None:
            fix = "move it into the folder of its class, or remove it"
            raise DataError("lies beside the class folders, so its class is not known", where=str(loose), fix=fix)
        for folder in folders:
            self._require_images(folder, found[folder.name], named=bool(known))
        self.classes = known or tuple(found)
        beside = [entry for entry in sorted(path.iterdir()) if entry.is_file() or _is_hidden(entry)]
        passed_over = [*beside, *(entry for each in found.values() for entry in each.passed_over)]
        self.notes = Found((), tuple(passed_over)).notes(path)
        numbers = {name: number for number, name in enumerate(self.classes)}
        return [(file, numbers[name]) for name, each in found.items() for file in each.images]

    def _require_known(self, folders: Sequence[Path], known: tuple[str, ...]) -> None:
        """Refuse the folder of a class that the model does not have."""
        odd = next((folder.name for folder in folders if known and folder.name not in known), None)
        if odd is not None:
            raise DataError(
                f"class folder {odd!r} is none of the model's classes; {did_you_mean(odd, known)}",
                where=self.where,
                fix="rename the folder, or list every class in model.classes, in the order of the model's outputs",
            )

    def _require_images(self, folder: Path, found: Found, *, named: bool) -> None:
        """Refuse a class without images and, where nothing says what the classes are, one of folders only."""
        if not found.images and not named:
            raise DataError(
                f"class folder {folder.name!r} holds {_some(folder)}, and no {self._of.what} ({self._of.listed})",
                where=self.where,
                fix=f"add {self._of.what}s, or remove the folder: classes are numbered in the order of their folders",
            )
        if found.images and not named and not any(file.parent == folder for file in found.images):
            inner = found.images[0].relative_to(folder).parts[0]
            raise DataError(
                f"class folder {folder.name!r} holds folders, such as {inner!r}, and no {self._of.what} itself",
                where=self.where,
                fix=f"name the folder whose subfolders are the classes, such as {folder.name}; or list the classes "
                "in model.classes",
            )

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Sequence[int]) -> tuple[tuple[Array, ...], Array | None]:
        read = [self._decoded(self._files[index][0]) for index in indices]
        return (stacked(read),), np.asarray([self._files[index][1] for index in indices]) if self.labelled else None

    def _decoded(self, file: Path) -> Array:
        if self._of is RECORDINGS:
            return self.sound(file, self._spec, str(file))
        return read_image(file, mode_of(self._spec.shape[0]), upright=self.upright)

    def input_place(self, index: int) -> str:
        return str(self._files[index][0])


class Found(NamedTuple):
    """The files of a kind below a folder, in order, and what was passed over."""

    images: tuple[Path, ...]
    passed_over: tuple[Path, ...]

    @classmethod
    def below(cls, folder: Path, of: Files = IMAGES) -> Found:
        """The files in a folder and in those inside it, but not in hidden ones.

        Raises:
            DataError: One is of a format that is not read.
        """
        images: list[Path] = []
        passed_over: list[Path] = []
        for entry in sorted(folder.iterdir()):
            if _is_hidden(entry):
                passed_over.append(entry)
            elif of.holds(entry):
                images.append(entry)
            elif entry.is_dir() and not entry.is_symlink():
                inner = cls.below(entry, of)
                images.extend(inner.images)
                passed_over.extend(inner.passed_over)
            elif entry.suffix.lower() in of.unread:
                problem = f"is a {entry.suffix.lower()} {of.what}, and only {of.listed} are read"
                fix = f"convert it to {'PNG' if of is IMAGES else 'WAV'}, or remove it"
                raise DataError(problem, where=str(entry), fix=fix)
            else:
                passed_over.append(entry)
        return cls(tuple(images), tuple(passed_over))

    def by_name(self, folder: Path, of: Files = IMAGES) -> dict[str, Path]:
        """The files by their paths in the folder, without extension, in order.

        Raises:
            DataError: There is none, or two have one name.
        """
        named: dict[str, Path] = {}
        for file in self.images:
            name = file.relative_to(folder).with_suffix("").as_posix()
            if name in named:
                raise DataError(f"has the name of {named[name]}", where=str(file), fix="remove or rename one of them")
            named[name] = file
        if not named:
            raise DataError(f"holds no {of.what} ({of.listed})", where=str(folder), fix=f"add {of.what}s")
        return named

    def notes(self, folder: Path) -> tuple[str, ...]:
        """What a reader has to know of what was passed over: hidden entries, and files of other kinds."""
        hidden = [entry for entry in self.passed_over if _is_hidden(entry)]
        others = [entry for entry in self.passed_over if not _is_hidden(entry)]
        return tuple(
            f"{folder}: passed over {len(entries)} {what}, such as {entries[0].relative_to(folder)}"
            for what, entries in (("hidden entries", hidden), ("entries of other kinds", others))
            if entries
        )


def mode_of(channels: int) -> Literal["L", "RGB"]:
    """How images are decoded for an input of so many channels."""
    return "L" if channels == 1 else "RGB"


def stacked(images: Sequence[Array]) -> Array:
    """Images as one array ``(N,)`` of arrays: sizes may differ until they are resized."""
    found = np.empty(len(images), dtype=object)
    found[:] = images
    return found


def _visible(folder: Path) -> list[Path]:
    """Entries that are not hidden, as those of file managers and notebooks are."""
    return sorted(entry for entry in folder.iterdir() if not _is_hidden(entry))


def _is_hidden(entry: Path) -> bool:
    return entry.name.startswith(".") or entry.name in _HIDDEN


def _some(folder: Path) -> str:
    return ", ".join(entry.name for entry in _visible(folder)[:3]) or "nothing"
