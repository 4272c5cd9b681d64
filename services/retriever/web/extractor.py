"""Pages -> main texts, in processes of their own: one that takes too long or too much memory dies with its page.

Some pages take trafilatura minutes, made so or not; a thread could neither be stopped nor keep out of the event loop's
way.
"""

import asyncio
import struct
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from pathlib import Path

from searcher.contracts.errors import UpstreamUnavailable
from services.retriever.web.extract import MAX_MEMORY_BYTES

_SCRIPT = Path(__file__).with_name("extract.py")
_START_SECONDS = 60.0


class TooHard(Exception):
    """The page took longer than it may, or more memory, or killed its process."""


class _Died(Exception):
    """The process, and nobody knows whose fault that is."""


class Extractor:
    """Processes are started when they are needed, and stay."""

    def __init__(self, *, processes: int = 2, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._turns = asyncio.Semaphore(processes)
        self._idle: list[Process] = []

    async def text(self, page: bytes, content_type: str) -> str:
        """Main text; "" if there is none. Raises TooHard. The time spent waiting for a turn does not count."""
        async with self._turns:
            if process := self._living():
                with suppress(_Died):  # perhaps before it was asked: the system kills where memory is short
                    return await self._text_by(process, page, content_type)
            try:
                return await self._text_by(await _started(), page, content_type)
            except _Died as error:
                raise TooHard(f"no main text within {MAX_MEMORY_BYTES} bytes") from error

    async def _text_by(self, process: Process, page: bytes, content_type: str) -> str:
        """Raises TooHard for a page that takes too long, _Died for a process that is gone."""
        try:
            async with asyncio.timeout(self._seconds):
                text = await _ask(process, page, content_type)
        except TimeoutError as error:
            raise TooHard(f"no main text within {self._seconds:g} s") from error
        except (EOFError, OSError, RuntimeError) as error:  # the last is uvloop's word for a closed pipe
            raise _Died from error
        else:
            self._idle.append(process)
            return text
        finally:
            if process not in self._idle:
                await _killed(process)

    def _living(self) -> Process | None:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        return None

    async def close(self) -> None:
        while self._idle:
            await _killed(self._idle.pop())


async def _started() -> Process:
    """Raises UpstreamUnavailable: that is no page's fault."""
    # -P: this folder's own names must not stand in for those of packages.
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", str(_SCRIPT), stdin=PIPE, stdout=PIPE, stderr=DEVNULL
    )
    ready = False
    try:
        async with asyncio.timeout(_START_SECONDS):
            await _read(process)
        ready = True
    except (TimeoutError, EOFError) as error:
        raise UpstreamUnavailable(f"{_SCRIPT.name} did not start; is trafilatura installed?") from error
    finally:
        if not ready:
            await _killed(process)
    return process


async def _ask(process: Process, page: bytes, content_type: str) -> str:
    assert process.stdin is not None
    kind = content_type.encode("latin-1", "replace")
    process.stdin.write(struct.pack(">II", len(kind), len(page)) + kind + page)
    await process.stdin.drain()
    return await _read(process)


async def _read(process: Process) -> str:
    assert process.stdout is not None
    (num_bytes,) = struct.unpack(">I", await process.stdout.readexactly(4))
    return (await process.stdout.readexactly(num_bytes)).decode()


async def _killed(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    assert process.stdin is not None
    process.stdin.close()
    await process.wait()
