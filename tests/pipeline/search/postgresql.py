"""A PostgreSQL server of the test's own, in a temporary folder, from the packages of the system."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DEBIAN = Path("/usr/lib/postgresql")


def programs() -> Path | None:
    """The folder that holds ``initdb`` and ``pg_ctl``, or None where PostgreSQL is not installed."""
    found = [Path(path).resolve() for path in (shutil.which("initdb"), *sorted(_DEBIAN.glob("*/bin/initdb"))) if path]
    return next((path.parent for path in reversed(found) if (path.parent / "pg_ctl").exists()), None)


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """A running server's URL. PostgreSQL refuses to run as root, who therefore becomes ``postgres`` for it."""
    home = programs()
    assert home is not None
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)

    def call(program: str, *arguments: str) -> None:
        command = [str(home / program), *arguments]
        subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = str(folder / "cluster")
    call("initdb", "-D", cluster, "-U", "edgewright", "--auth=trust", "--no-sync")
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    call("pg_ctl", "-D", cluster, "-l", str(folder / "log"), "-w", "-o", settings, "start")
    try:
        yield f"postgresql+psycopg://edgewright@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-D", cluster, "-m", "immediate", "stop")
