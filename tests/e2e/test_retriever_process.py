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
    """Eight of them, each with a kept connection and a query of its own every time, until `done` says so."""

    def __init__(self, url: str, done: Callable[[], bool]) -> None:
        self.url, self.done = url, done
        self.outcomes: Counter[str] = Counter()
        self.indexes: set[str] = set()
        self.threads = [threading.Thread(target=self.call, args=(number,)) for number in range(8)]
        for thread in self.threads:
            thread.start()

    def call(self, caller: int) -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            number = 0
            while not self.done():
                number += 1
                try:
                    answer = client.post(
                        f"{self.url}/v1/search", json={"queries": [f"Paris {caller} {number}"], "k": 1}
                    )
                    self.outcomes[str(answer.status_code)] += 1
                    self.indexes.add(answer.json()["index"])
                except httpx.TransportError as error:
                    self.outcomes[type(error).__name__] += 1

    def join(self) -> None:
        for thread in self.threads:
            thread.join()


def test_who_follows_readiness_sees_no_failure_when_an_instance_ends(tmp_path: Path) -> None:
    index_dir, port = build(tmp_path, "bm25"), free_port()
    url = f"http://127.0.0.1:{port}"
    looked_away = threading.Event()
    with start(index_dir, port, drain_seconds=3) as process:
        wait_until_ready(process, url)
        callers = Callers(url, looked_away.is_set)
        while callers.outcomes.total() < 50:
            time.sleep(0.01)

        process.send_signal(signal.SIGTERM)
        while httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
            time.sleep(0.01)
        ended_before = process.poll() is not None
        looked_away.set()
        callers.join()

        assert process.wait(timeout=60) == 0
    assert not ended_before
    assert set(callers.outcomes) == {"200"}


def test_an_index_is_replaced_under_load_without_a_failure(tmp_path: Path) -> None:
    index_dir, port = build(tmp_path, "bm25"), free_port()
    (index_dir / "bm25").rename(tmp_path / "older")
    newer = tmp_path / "newer"
    shutil.copytree(tmp_path / "older", newer)
    manifest = json.loads((newer / "manifest.json").read_text())
    manifest["source"]["name"] = "another build"
    (newer / "manifest.json").write_text(json.dumps(manifest))
    place = tmp_path / "place"
    place.mkdir()
    (place / "current").symlink_to(tmp_path / "older")
    url, seen = f"http://127.0.0.1:{port}", threading.Event()
    with start(place, port, watch_seconds=0.1) as process:
        wait_until_ready(process, url)
        before = httpx.get(f"{url}/v1/corpora", trust_env=False).json()[0]["index"]
        callers = Callers(url, seen.is_set)

        (place / "next").symlink_to(newer)
        (place / "next").rename(place / "current")
        while httpx.get(f"{url}/v1/corpora", trust_env=False).json()[0]["index"] == before:
            assert process.poll() is None
            time.sleep(0.05)
        while len(callers.indexes) < 2:
            time.sleep(0.01)
        seen.set()
        callers.join()
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=60) == 0
    assert set(callers.outcomes) == {"200"}
    assert before in callers.indexes
