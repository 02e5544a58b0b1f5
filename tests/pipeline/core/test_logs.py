"""Where our log goes, and what becomes of the noise of other libraries."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import pytest

from pipeline.core.logs import logged_to, silenced


class Kept(logging.Handler):
    """Keeps the messages that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def noise() -> None:
    """What libraries do: Python and C++ write to the terminal, log, and warn."""
    print("a bar 10%\ra bar 100%", file=sys.stderr)
    os.write(2, b"native line\n")
    logging.getLogger("other.part").error("an advice")
    logging.getLogger("root").error("from the root")
    warnings.warn("an old name", FutureWarning, stacklevel=2)


@pytest.mark.filterwarnings("default")
def test_silenced_noise_is_in_our_log_and_nowhere_else(capfd: pytest.CaptureFixture[str]) -> None:
    kept, users = Kept(), Kept()
    logging.getLogger().addHandler(users)
    try:
        with logged_to(kept), silenced("other", "root") as held:
            noise()
        logging.getLogger("other.part").error("afterwards")
    finally:
        logging.getLogger().removeHandler(users)
    assert capfd.readouterr().err == ""
    assert users.messages == ["afterwards"]
    assert set(kept.messages) == {
        "a bar 10%", "a bar 100%", "native line", "other.part: an advice", "root: from the root",
        "FutureWarning: an old name",
    }  # fmt: skip
    assert "native line" in held.text


def test_log_gets_debug_lines_that_the_user_s_own_logging_does_not() -> None:
    kept, users = Kept(), Kept()
    ours = logging.getLogger("pipeline.stages.example")
    logging.getLogger().addHandler(users)
    try:
        with logged_to(kept):
            ours.debug("a detail")
            ours.warning("a warning")
            logging.getLogger("other").warning("another's")
            logging.getLogger("other").debug("another's detail")
        ours.warning("later")
    finally:
        logging.getLogger().removeHandler(users)
    assert kept.messages == ["a detail", "a warning", "another's"]
    assert users.messages == ["a warning", "another's", "later"]
    assert not ours.isEnabledFor(logging.DEBUG)


@pytest.mark.filterwarnings("default")
def test_warnings_are_logged_for_the_duration() -> None:
    kept, shown = Kept(), warnings.showwarning
    with logged_to(kept):
        warnings.warn("an old name", FutureWarning, stacklevel=1)
    assert any("FutureWarning: an old name" in message for message in kept.messages)
    assert warnings.showwarning is shown
