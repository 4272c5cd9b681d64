"""The retriever as it is run: built by its command, served by its own process, ended by a signal."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Self

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
    command = [sys.executable, "-m", "services.retriever.building", str(source), "--kind", kind, *arguments]
    subprocess.run([*command, "--out", str(tmp_path / "indexes" / kind)], check=True, timeout=600)
    return tmp_path / "indexes"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def start(index_dir: Path, port: int, **settings: object) -> subprocess.Popen[bytes]:
    environment = os.environ | {"RETRIEVER_INDEX_DIR": str(index_dir), "RETRIEVER_PORT": str(port)}
    environment |= {f"RETRIEVER_{name.upper()}": str(value) for name, value in settings.items()}
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


class Callers:
    """Eight of them, each with a kept connection and a query of its own every time, until the block ends."""

    def __init__(self, url: str) -> None:
        self.url, self.done = url, threading.Event()
        self.outcomes: Counter[str] = Counter()
        self.indexes: set[str] = set()
        self.threads = [threading.Thread(target=self.call, args=(number,)) for number in range(8)]

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        for thread in self.threads:
            thread.join()

    def call(self, caller: int) -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            number = 0
            while not self.done.is_set():
                number += 1
                try:
                    answer = client.post(
                        f"{self.url}/v1/search", json={"queries": [f"Paris {caller} {number}"], "k": 1}
                    )
                    self.outcomes[str(answer.status_code)] += 1
                    self.indexes.add(answer.json()["index"])
                except httpx.TransportError as error:
                    self.outcomes[type(error).__name__] += 1

    def wait_until(self, what: Callable[[], bool]) -> None:
        """Raises AssertionError for the first failure."""
        while not what():
            assert set(self.outcomes) <= {"200"}
            time.sleep(0.01)


def is_ready(url: str) -> bool:
    return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200


def test_who_follows_readiness_sees_no_failure_when_an_instance_ends(tmp_path: Path) -> None:
    index_dir, port = build(tmp_path, "bm25"), free_port()
    url = f"http://127.0.0.1:{port}"
    with start(index_dir, port, drain_seconds=5) as process:
        wait_until_ready(process, url)
        with Callers(url) as callers:
            callers.wait_until(lambda: callers.outcomes.total() > 50)
            process.send_signal(signal.SIGTERM)
            callers.wait_until(lambda: not is_ready(url))

        assert process.wait(timeout=60) == 0
    assert set(callers.outcomes) == {"200"}


def test_an_index_is_replaced_under_load_without_a_failure(tmp_path: Path) -> None:
    older, newer, place = build(tmp_path, "bm25") / "bm25", tmp_path / "newer", tmp_path / "place"
    shutil.copytree(older, newer)
    manifest = json.loads((newer / "manifest.json").read_text())
    manifest["source"]["name"] = "another build"
    (newer / "manifest.json").write_text(json.dumps(manifest))
    place.mkdir()
    (place / "current").symlink_to(older)
    port = free_port()
    with start(place, port, watch_seconds=0.1) as process:
        wait_until_ready(process, f"http://127.0.0.1:{port}")
        with Callers(f"http://127.0.0.1:{port}") as callers:
            callers.wait_until(lambda: len(callers.indexes) == 1)
            (place / "next").symlink_to(newer)
            (place / "next").rename(place / "current")
            callers.wait_until(lambda: len(callers.indexes) == 2)
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=60) == 0
    assert set(callers.outcomes) == {"200"}
