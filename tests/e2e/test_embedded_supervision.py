"""A real supervisord keeps toy programs alive: what `up`, `down`, a kill and a crash of any part leave behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest

from searcher.cli.embedded.deployment import Deployment
from searcher.cli.embedded.ports import is_free
from searcher.cli.embedded.supervisor import GUARD, Changes, Program
from searcher.contracts.errors import Conflict, NotFound, SearcherError
from searcher.contracts.recipe import Recipe

pytestmark = pytest.mark.e2e

SERVER = """
import http.server, os, subprocess, sys
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(os.environ.get("GREETING", "").encode())
    def log_message(self, *args): pass
subprocess.Popen([sys.executable, sys.argv[2], "SIGKILL", "sleep", "1000"])
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""
OFFSET = 18_600


@dataclass(frozen=True)
class ToyDeployment(Deployment):
    """Two web servers instead of eight services."""

    toys: tuple[Program, ...] = field(default=())

    @property
    def programs(self) -> tuple[Program, ...]:
        return self.toys


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    return path


def server(name: str, script: Path, port: int, **environment: str) -> Program:
    return Program(
        name, (sys.executable, str(script), str(port), str(GUARD)), environment, port=port, ready_path="/readyz"
    )


@pytest.fixture
def deployment(tmp_path: Path, toy_recipe: Recipe, script: Path) -> Iterator[ToyDeployment]:
    toys = (server("first", script, OFFSET + 1), server("second", script, OFFSET + 2))
    deployment = ToyDeployment(
        recipe=toy_recipe,
        state_dir=tmp_path / "state",
        port_offset=0,
        runs_dir=tmp_path / "runs",
        engine_python=Path(sys.executable),
        toys=toys,
    )
    yield deployment
    if deployment.is_up():
        deployment.stop()


@pytest.fixture
def toy_recipe() -> Recipe:
    stage = {"name": "only", "questions": "questions.jsonl", "rules": "searcher", "max_steps": 1}
    return Recipe.model_validate(
        {
            "name": "toy",
            "model": {"path": "model"},
            "questions_per_step": 1,
            "samples_per_question": 2,
            "stages": [stage],
        }
    )


def wait_until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def family(deployment: ToyDeployment) -> list[psutil.Process]:
    """supervisord, the programs and their children."""
    supervisord = psutil.Process(deployment.supervisor.pid())
    return [supervisord, *supervisord.children(recursive=True)]


def lives(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def test_up_is_up_and_a_second_up_changes_nothing(deployment: ToyDeployment) -> None:
    first = deployment.start()
    deployment.wait_ready()
    pids = [row.pid for row in deployment.status()]

    second = deployment.start()

    assert first.started == ("first", "second")
    assert second == Changes()
    assert [row.pid for row in deployment.status()] == pids


def test_only_the_program_that_differs_is_restarted(deployment: ToyDeployment, script: Path) -> None:
    deployment.start()
    deployment.wait_ready()
    before = {row.name: row.pid for row in deployment.status()}
    other = server("second", script, OFFSET + 2, GREETING='hello, "100%"')
    changed = replace(deployment, toys=(deployment.toys[0], other))

    changes = changed.start()
    changed.wait_ready()

    after = {row.name: row.pid for row in changed.status()}
    assert changes == Changes(restarted=("second",))
    assert after["first"] == before["first"]
    assert after["second"] != before["second"]


def test_a_killed_program_comes_back(deployment: ToyDeployment) -> None:
    deployment.start()
    deployment.wait_ready()

    old = deployment.kill("second")
    wait_until(lambda: not psutil.pid_exists(old))
    wait_until(lambda: any(row.name == "second" and row.pid is not None for row in deployment.status()))
    deployment.wait_ready()

    assert deployment.pid("second") != old


def test_stop_leaves_no_process_behind(deployment: ToyDeployment) -> None:
    deployment.start()
    deployment.wait_ready()
    processes = family(deployment)

    stopped = deployment.stop()

    assert stopped
    assert len(processes) == 5
    assert not any(lives(process) for process in processes)
    assert not deployment.stop()


def test_when_supervisord_is_killed_its_programs_end_and_up_starts_anew(deployment: ToyDeployment) -> None:
    deployment.start()
    deployment.wait_ready()
    supervisord, *programs = family(deployment)

    supervisord.kill()

    wait_until(lambda: not any(lives(process) for process in programs))
    deployment.start()
    deployment.wait_ready()
    assert deployment.pid("first") not in {process.pid for process in programs}


def test_when_its_owner_is_killed_everything_ends(deployment: ToyDeployment) -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from searcher.cli.embedded import supervisor\n"
        "supervisor.spawn(Path(sys.argv[2]), die_with_parent=True); print('started', flush=True); time.sleep(1000)"
    )
    deployment.start()
    deployment.stop()  # leaves the configuration
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(deployment.root), str(deployment.config_path)], stdout=subprocess.PIPE
    )
    wait_until(deployment.is_up)
    deployment.wait_ready()
    processes = family(deployment)

    owner.send_signal(signal.SIGKILL)
    owner.communicate()

    wait_until(lambda: not any(lives(process) for process in processes))


def test_a_taken_port_is_named_with_its_holder(deployment: ToyDeployment, script: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, script, str(OFFSET + 2), GUARD], stdout=subprocess.DEVNULL, process_group=0
    )
    try:
        wait_until(lambda: not is_free(OFFSET + 2))
        with pytest.raises(Conflict) as refused:
            deployment.check_ports(deployment.programs)
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate()

    assert str(refused.value).startswith(f"port {OFFSET + 2} (second) is taken by process {holder.pid} (")
    assert "searcher up --port-offset 100" in str(refused.value)


def test_a_program_that_cannot_start_is_reported_with_the_end_of_its_log(deployment: ToyDeployment) -> None:
    broken = Program("broken", (sys.executable, "-c", "raise SystemExit('no index')"), port=OFFSET + 3)
    deployment = replace(deployment, toys=(broken,))

    deployment.start()
    with pytest.raises(SearcherError, match="no index") as failed:
        deployment.wait_ready()
    deployment.stop()

    assert str(failed.value).startswith("broken does not start")


def test_nothing_runs_is_said_plainly(deployment: ToyDeployment) -> None:
    with pytest.raises(NotFound, match="nothing runs in"):
        deployment.status()
