"""programs -> a running supervisord that keeps them alive, and the way to talk to it.

Supervisor is the engine; here are only its configuration, its start and its XML-RPC calls over a unix socket. Which
programs make up a deployment is decided in `programs`.
"""

import hashlib
import os
import shlex
import signal
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil

from searcher.cli.embedded import guard
from searcher.cli.embedded.logs import log_path
from searcher.contracts.errors import InvalidInput, SearcherError

GUARD = Path(guard.__file__)
SOCKET_PATH_LIMIT = 100
"""The kernel takes unix socket paths of at most 107 bytes; supervisord appends its process id for a moment."""
STOP_SECONDS = 240.0
"""More than any program's `stop_seconds`."""


@dataclass(frozen=True)
class Program:
    """One process to keep alive."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    ready_path: str | None = None
    """Answers 200 when the program can serve. None: it is Redis, and answers PING; without a port: ready as it runs."""
    stop_seconds: int = 15
    """After SIGTERM; then SIGKILL for the whole group."""
    stop_as_group: bool = True
    """Whether SIGTERM goes to the program's children too; False where it winds them down by itself."""

    @property
    def url(self) -> str | None:
        return None if self.port is None else f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class ProcessState:
    """What supervisord knows of a program."""

    name: str
    state: str
    pid: int | None
    uptime_seconds: float
    reason: str


@dataclass(frozen=True)
class Changes:
    """Names of programs that differ from those that run."""

    started: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.started or self.restarted or self.stopped)


def render_config(programs: Sequence[Program], *, state_dir: Path, cwd: Path, socket: Path) -> str:
    """supervisord's configuration. Programs stop in the reverse of their order."""
    sections: dict[str, dict[str, str | int]] = {
        "unix_http_server": {"file": str(socket), "chmod": "0700"},
        "rpcinterface:supervisor": {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        },
        "supervisorctl": {"serverurl": f"unix://{socket}"},
        "supervisord": {
            "nodaemon": "true",
            "logfile": str(log_path(state_dir, "supervisord")),
            "logfile_maxbytes": "5MB",
            "logfile_backups": 1,
            "pidfile": str(state_dir / "supervisord.pid"),
            "childlogdir": str(state_dir / "logs"),
        },
    }
    for priority, program in enumerate(programs, start=1):
        sections[f"program:{program.name}"] = {
            "command": shlex.join((sys.executable, str(GUARD), "SIGKILL", *program.command)),
            "directory": str(cwd),
            "environment": ",".join(f"{key}={_quoted(value)}" for key, value in sorted(program.environment.items())),
            "priority": priority,
            "autorestart": "true",
            "startsecs": 3,
            "startretries": 100,
            "stopsignal": "TERM",
            "stopwaitsecs": program.stop_seconds,
            "stopasgroup": "true" if program.stop_as_group else "false",
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": str(log_path(state_dir, program.name)),
            "stdout_logfile_maxbytes": "10MB",
            "stdout_logfile_backups": 2,
        }
    return "\n".join(_section(name, options) for name, options in sections.items())


def socket_path(state_dir: Path) -> Path:
    """In the state directory, or under a short name in the temporary one where that path is too long for a socket."""
    path = state_dir / "supervisor.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
        return path
    return Path(tempfile.gettempdir()) / f"searcher-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.sock"


def spawn(config: Path, *, die_with_parent: bool) -> None:
    """Start supervisord in a session of its own, so that a terminal's Ctrl-C reaches its owner only."""
    command = [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "--configuration", str(config)]
    environment = {key: value for key, value in os.environ.items() if key != guard.PARENT}
    if die_with_parent:
        command = [sys.executable, str(GUARD), "SIGTERM", *command]
        environment[guard.PARENT] = str(os.getpid())
    nowhere = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    os.posix_spawn(sys.executable, command, environment, file_actions=nowhere, setsid=True)


class Supervisor:
    """A running supervisord, by its socket."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def is_running(self) -> bool:
        try:
            return str(self._call("getState")["statename"]) == "RUNNING"
        except SearcherError:
            return False

    def pid(self) -> int:
        return int(self._call("getPID"))

    def processes(self) -> list[ProcessState]:
        """What supervisord knows of each program, by name."""
        return [
            ProcessState(
                name=row["name"],
                state=row["statename"],
                pid=row["pid"] or None,
                uptime_seconds=float(row["now"] - row["start"]) if row["pid"] else 0.0,
                reason=row["spawnerr"] or ("" if row["pid"] else row["description"]),
            )
            for row in self._call("getAllProcessInfo")
        ]

    def apply_config(self) -> Changes:
        """Re-read the configuration; start, restart and stop what differs, and leave alone what does not."""
        ((added, changed, removed),) = self._call("reloadConfig")
        for name in (*removed, *changed):
            self._call("stopProcessGroup", name)
            self._call("removeProcessGroup", name)
        for name in (*added, *changed):
            self._call("addProcessGroup", name)
        return Changes(tuple(added), tuple(changed), tuple(removed))

    def restart(self, name: str) -> None:
        self._call("stopProcess", name)
        self._call("startProcess", name, False)

    def shutdown(self, *, last: str) -> None:
        """Stop all programs side by side, then `last`, then supervisord. Returns when no process of theirs is left."""
        supervisord = psutil.Process(self.pid())
        processes = self.processes()
        patience = time.monotonic() + STOP_SECONDS
        for row in processes:
            if row.name != last and row.state in ("RUNNING", "STARTING", "BACKOFF"):
                self._quietly("stopProcess", row.name, False)
        while time.monotonic() < patience and any(row.pid and row.name != last for row in self.processes()):
            time.sleep(0.1)
        self._quietly("shutdown")
        try:
            supervisord.wait(timeout=30.0)
        except psutil.TimeoutExpired:
            supervisord.kill()
            supervisord.wait(timeout=5.0)
        for row in processes:
            if row.pid:
                _kill_group(row.pid)

    def _call(self, method: str, *arguments: Any) -> Any:
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, f"unix://{self.socket}")
        try:
            with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as proxy:
                return getattr(proxy.supervisor, method)(*arguments)
        except (OSError, HTTPException, xmlrpc.client.Error) as error:
            raise SearcherError(f"supervisord at {self.socket}: {method}{arguments}: {error}") from error

    def _quietly(self, method: str, *arguments: Any) -> None:
        """For requests whose answer does not matter: the program may have ended by itself meanwhile."""
        try:
            self._call(method, *arguments)
        except SearcherError as error:
            if self.is_running() and "NOT_RUNNING" not in str(error):
                raise


def _kill_group(group: int) -> None:
    """What a program started and left behind shares its process group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _section(name: str, options: Mapping[str, str | int]) -> str:
    lines = (f"{key}={_checked(str(value))}" for key, value in options.items())
    return f"[{name}]\n" + "".join(f"{line}\n" for line in lines)


def _checked(value: str) -> str:
    """supervisord reads `%(…)s` as an expansion, ` ;` as a comment and a line's end as the value's end."""
    if "\n" in value or " ;" in value:
        raise InvalidInput(f"{value!r} cannot be written into supervisord's configuration; use a simpler path")
    return value.replace("%", "%%")


def _quoted(value: str) -> str:
    if '"' not in value:
        return f'"{value}"'
    if "'" not in value:
        return f"'{value}'"
    raise InvalidInput(f"{value!r} holds both kinds of quotes; use a simpler path")
