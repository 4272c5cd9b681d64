"""Which rule sets a service knows, and that the examples of its README work as they stand there."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from searcher.clients.reward import RemoteRewardClient
from searcher.contracts.errors import InvalidInput
from searcher.contracts.score import ScoreItem, TextSegment
from services.reward.app import create_app
from services.reward.catalogue import catalogue
from services.reward.engine import score_group
from services.reward.rules import RULES
from services.reward.settings import RewardSettings

README = Path(__file__).parents[3] / "services" / "reward" / "README.md"


def item(answer: str) -> ScoreItem:
    text = TextSegment(source="policy", text=f"</think><answer>{answer}</answer>")
    return ScoreItem(id=answer, question="?", answers=("Paris",), segments=(text,))


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which can be imported, for one test."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("my_rewards", "broken"):
        sys.modules.pop(name, None)


def example(file: str) -> str:
    """The code block of the README whose docstring begins with the file's name."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (found,) = [block for block in blocks if block.startswith(f'"""{file}')]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The README's examples


def test_the_readmes_rules_of_ones_own_score(modules: Path) -> None:
    (modules / "my_rewards.py").write_text(example("my_rewards.py"))

    known = catalogue(RewardSettings(custom="my_rewards:rules"))
    (scored,) = score_group([item("Paris")], known["brief"])

    assert scored.total == 0.99
    assert scored.parts == {"answer_f1": 1.0, "format": 0.0, "brevity": -0.01}


@pytest.mark.anyio
async def test_the_readmes_remote_reward_scores(tmp_path: Path) -> None:
    server = tmp_path / "my_reward.py"
    server.write_text(example("my_reward.py"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    with running(server, port):
        async with RemoteRewardClient(f"http://127.0.0.1:{port}/score") as client:
            points = await client.points([item("Paris, France"), item("Rome")], rules="remote")

    assert points == (1.0, 0.0)


class running:  # noqa: N801
    """The script as a process, from when it listens to the end of the block."""

    def __init__(self, script: Path, port: int) -> None:
        self.command, self.port = [sys.executable, str(script), str(port)], port

    def __enter__(self) -> None:
        self.process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self.process.poll() is None, "the example ended"
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)


def test_every_rule_set_stands_in_the_readme() -> None:
    text = README.read_text()

    known = catalogue(RewardSettings(judge_url="http://judge", judge_model="m", remote_url="http://mine"))

    assert [name for name in known if f"`{name}`" not in text] == []


# ---------------------------------------------------------------------------------------------------------------------
# What is known


def test_a_published_rule_set_is_found_under_its_other_name() -> None:
    known = catalogue(RewardSettings())

    assert known["r1-searcher-llama-stage1"] is known["r1-searcher-stage1-code"]
    assert set(known) == {*RULES, "r1-searcher-llama-stage1"}


def test_judge_and_remote_are_known_where_they_can_be_asked() -> None:
    known = catalogue(RewardSettings(judge_url="http://judge", judge_model="m", remote_url="http://mine"))

    assert {*known} - {*RULES} == {"r1-searcher-llama-stage1", "searcher-judge", "remote"}


def test_a_judge_needs_a_model() -> None:
    with pytest.raises(ValidationError, match="REWARD_JUDGE_URL and REWARD_JUDGE_MODEL"):
        RewardSettings(judge_url="http://judge")


def test_an_empty_key_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(" \n")

    with pytest.raises(ValueError, match=r"REWARD_JUDGE_KEY_FILE: .* is empty"):
        _ = RewardSettings(judge_url="http://judge", judge_model="m", judge_key_file=file).judge_key


IMPORT = "from services.reward.rules import RULES, Rules\nfrom dataclasses import replace\nF = RULES['searcher']\n"


@pytest.mark.parametrize(
    ("entry_point", "code", "complaint"),
    [
        ("broken", "", "write it as my_package.rewards:rules"),
        ("nowhere:rules", "", "does not load: ModuleNotFoundError"),
        ("broken:rules", "rules = (", "does not load: SyntaxError"),
        ("broken:rules", "", "does not load: AttributeError"),
        ("broken:rules", "def rules(): return 1 / 0", "does not load: ZeroDivisionError"),
        ("broken:rules", "rules = 1", "wanted services.reward.rules.Rules, one or several, got 1"),
        ("broken:rules", "rules = []", r"wanted services.reward.rules.Rules, one or several, got \[\]"),
        ("broken:rules", "rules = ['searcher']", "wanted services.reward.rules.Rules, got 'searcher'"),
        ("broken:rules", "rules = F", "the name 'searcher' is taken"),
        ("broken:rules", "rules = replace(F, name='a b')", "'a b' is no name"),
        ("broken:rules", "rules = replace(F, name='x', parts={})", "x: parts must name at least one function"),
        ("broken:rules", "rules = replace(F, name='x', parts={'a': 1})", "x: parts must name at least one function"),
        ("broken:rules", "rules = replace(F, name='x', checks=[len])", "x: checks must be a tuple of Check"),
        ("broken:rules", "rules = replace(F, name='x', asks='judge')", "x: asks must be None"),
        ("broken:rules", "rules = [replace(F, name='x')] * 2", "the name 'x' is taken"),
    ],
)
def test_rules_of_ones_own_that_do_not_load_are_refused_at_start(
    modules: Path, entry_point: str, code: str, complaint: str
) -> None:
    (modules / "broken.py").write_text(IMPORT + code)

    with pytest.raises(InvalidInput, match=f"REWARD_CUSTOM={entry_point}: .*{complaint}"):
        create_app(RewardSettings(custom=entry_point))


def test_the_service_ends_at_its_start_with_the_setting_to_mend() -> None:
    started = subprocess.run(
        [sys.executable, "-m", "services.reward"],
        env={**os.environ, "REWARD_CUSTOM": "nowhere:rules"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert started.returncode == 1
    assert started.stderr.startswith("reward: REWARD_CUSTOM=nowhere:rules: does not load: ModuleNotFoundError")


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ("f2", "REWARD_DROPIN_RULES: rules: 'f2' is not one of"),
        ("searcher-budget", "compares the responses to one question"),
    ],
)
def test_get_reward_refuses_rules_that_it_cannot_apply_at_start(rules: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        create_app(RewardSettings(dropin_rules=rules))


def test_a_file_of_questions_that_is_not_there_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.jsonl"):
        create_app(RewardSettings(dropin_questions=tmp_path / "none.jsonl"))
