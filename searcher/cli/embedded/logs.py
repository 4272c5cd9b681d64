"""A program's log: where it is, how it ends, what is new in it."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

TAIL_LINES = 15
FOLLOW_SECONDS = 0.2


def log_path(state_dir: Path, program: str) -> Path:
    return state_dir / "logs" / f"{program}.log"


def last_lines(path: Path, num_lines: int) -> list[str]:
    """Empty where nothing was written."""
    return path.read_text(errors="replace").splitlines()[-num_lines:] if path.exists() else []


def tail(path: Path) -> str:
    """The end of a log as an error shows it."""
    if not path.exists():
        return f"  ({path} was not written)"
    return "\n".join(f"  {line}" for line in last_lines(path, TAIL_LINES)) or f"  ({path} is empty)"


def sizes(paths: Mapping[str, Path]) -> dict[str, int]:
    """In bytes; 0 where nothing was written."""
    return {name: path.stat().st_size if path.exists() else 0 for name, path in paths.items()}


def new_lines(paths: Mapping[str, Path], positions: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Lines as they are written behind `positions`, for ever; a log that was rotated is read from its start."""
    positions = dict(positions)
    while True:
        for name, size in sizes(paths).items():
            if size < positions[name]:
                positions[name] = 0
            if size > positions[name]:
                with paths[name].open("rb") as log:
                    log.seek(positions[name])
                    chunk = log.read()
                whole = chunk[: chunk.rfind(b"\n") + 1]
                positions[name] += len(whole)
                for line in whole.decode(errors="replace").splitlines():
                    yield name, line
        time.sleep(FOLLOW_SECONDS)
