"""program -> whether it can serve, and if not, why, in its own words where it answers."""

import json
import socket
import urllib.error
import urllib.request
from dataclasses import dataclass

from searcher.cli.embedded.supervisor import ProcessState, Program

PROBE_SECONDS = 2.0
SILENT = "starting"
"""The reason of a program that runs and does not answer yet."""

# The programs are on this machine: a proxy of the environment must not stand between.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class ProgramStatus:
    """One row of `searcher status`."""

    name: str
    state: str
    """supervisord's word: RUNNING, STARTING, BACKOFF, EXITED, FATAL, STOPPED."""
    pid: int | None
    uptime_seconds: float
    ready: bool
    reason: str
    """Why it is not ready, in its own words where it answers."""
    url: str | None

    @property
    def answers(self) -> bool:
        """Whether it can be asked, ready or not."""
        return self.pid is not None and self.reason != SILENT


def status_of(program: Program, process: ProcessState) -> ProgramStatus:
    """Asks the program, if it runs."""
    reason = why_not_ready(program) if process.pid else process.reason
    return ProgramStatus(
        name=program.name,
        state=process.state,
        pid=process.pid,
        uptime_seconds=process.uptime_seconds,
        ready=process.pid is not None and reason is None,
        reason=reason or "",
        url=program.url,
    )


def why_not_ready(program: Program) -> str | None:
    """None if the running program can serve, else the reason."""
    if program.port is None:
        return None
    if program.ready_path is None:
        return _ping_redis(program.port)
    try:
        with _DIRECT.open(f"{program.url}{program.ready_path}", timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        with error:
            return _detail(error.read(4096)) or f"HTTP {error.code}"
    except OSError:
        return SILENT


def _detail(body: bytes) -> str:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return ""


def _ping_redis(port: int) -> str | None:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PROBE_SECONDS) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
    except OSError:
        return SILENT
    return None if answer.startswith(b"+PONG") else answer.decode(errors="replace").strip()
