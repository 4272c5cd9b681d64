"""The retriever as it is run: built by its command, served by its own process, ended by a signal."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.e2e

PASSAGES = (
    {"id": "1", "title": "Rome", "text": "The seat of the Italian government."},
    {"id": "2", "title": "Felis catus", "text": "A small domesticated animal that purrs."},
    {"id": "3", "title": "Seine", "text": "A river that flows through Paris."},
)


def build(tmp_path: Path, kind: str, *arguments: str) -> Path:
    source = tmp_path / "world.jsonl"
    source.write_text("".join(json.dumps(passage) + "\n" for passage in PASSAGES))
    command = [sys.executable, "-m", "services.retriever.build_index", str(source), "--kind", kind, *arguments]
    subprocess.run([*command, "--out", str(tmp_path / "indexes" / kind)], check=True, timeout=600)
    return tmp_path / "indexes"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def start(index_dir: Path, port: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"RETRIEVER_INDEX_DIR": str(index_dir), "RETRIEVER_PORT": str(port)}
    return subprocess.Popen([sys.executable, "-m", "services.retriever"], env=environment, stderr=subprocess.PIPE)


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"the retriever ended with {process.returncode}")


@pytest.mark.parametrize(("kind", "arguments"), [("bm25", ()), ("flat", ("--encoder", "minilm"))])
def test_a_built_index_is_served_until_a_signal_ends_it(tmp_path: Path, kind: str, arguments: tuple[str, ...]) -> None:
    index_dir, port = build(tmp_path, kind, *arguments), free_port()
    url = f"http://127.0.0.1:{port}"
    with start(index_dir, port) as process:
        try:
            wait_until_ready(process, url)
            queries = {"bm25": "Which animal purrs?", "flat": "the pet that says meow"}

            answer = httpx.post(f"{url}/v1/search", json={"queries": [queries[kind]], "k": 1}, trust_env=False).json()

            assert answer["results"][0][0]["title"] == "Felis catus"
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_a_damaged_index_ends_the_process_with_its_reason(tmp_path: Path) -> None:
    index_dir = build(tmp_path, "bm25")
    (index_dir / "bm25" / "offsets.npy").unlink()

    with start(index_dir, free_port()) as process:
        _, stderr = process.communicate(timeout=120)

    assert process.returncode != 0
    assert "offsets.npy: missing" in stderr.decode()
