"""A recipe -> the programs of its deployment, and the configuration that supervisord reads."""

import configparser
import sys
from pathlib import Path

import pytest

from searcher.cli.embedded.deployment import Deployment
from searcher.cli.embedded.supervisor import Program, render_config, socket_path
from searcher.contracts.errors import InvalidInput, NotFound
from searcher.contracts.recipe import Recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "1", "text": "a"}\n')
    return Recipe.model_validate(
        {
            "name": "toy",
            "model": {"path": str(tmp_path / "model"), "dtype": "float32"},
            "corpora": {"books": {"source": str(corpus), "kind": "bm25"}},
            "rollout": {"max_context_tokens": 640},
            "questions_per_step": 2,
            "samples_per_question": 4,
            "stages": [{"name": "only", "questions": "q.jsonl", "rules": "searcher", "max_steps": 3}],
            "trainer": {"device": "cpu"},
            "engine": {"kv_cache_gib": 0.5, "max_num_seqs": 16},
        }
    )


@pytest.fixture
def deployment(recipe: Recipe, tmp_path: Path) -> Deployment:
    return Deployment.for_recipe(recipe, tmp_path / "state", 160, runs_dir=tmp_path / "runs")


def environment(deployment: Deployment, name: str) -> dict[str, str]:
    return dict(next(program.environment for program in deployment.programs if program.name == name))


def test_every_program_starts_after_those_it_talks_to(deployment: Deployment) -> None:
    names = [program.name for program in deployment.programs]

    assert names == [
        "redis", "retriever", "reward", "engine-0", "rollout", "evaluator", "evaluator-worker", "trainer",
    ]  # fmt: skip


def test_the_offset_moves_every_port_and_every_url(deployment: Deployment) -> None:
    rollout = environment(deployment, "rollout")

    assert [program.port for program in deployment.programs] == [6539, 8161, 8162, 8170, 8163, 8165, None, 8164]
    assert rollout["ROLLOUT_ENGINES"] == "http://127.0.0.1:8170"
    assert rollout["ROLLOUT_RETRIEVER_URL"] == "http://127.0.0.1:8161"
    assert rollout["SEARCHER_REDIS_URL"] == "redis://127.0.0.1:6539/0"


def test_the_engine_gets_the_recipes_model_and_sizes(deployment: Deployment, recipe: Recipe) -> None:
    engine = environment(deployment, "engine-0")

    assert engine["ENGINE_MODEL_DIR"] == recipe.model.path
    assert (engine["ENGINE_DTYPE"], engine["ENGINE_DEVICE"]) == ("float32", "cpu")
    assert (engine["ENGINE_MAX_CONTEXT_TOKENS"], engine["ENGINE_MAX_NUM_SEQS"]) == ("640", "16")
    assert engine["ENGINE_KV_CACHE_GIB"] == "0.5"
    assert (engine["OMP_NUM_THREADS"], engine["OMP_WAIT_POLICY"]) == ("1", "PASSIVE")


def test_each_engine_replica_has_its_own_port_and_rollout_knows_all(deployment: Deployment, recipe: Recipe) -> None:
    two = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"replicas": 2})})

    deployment = Deployment.for_recipe(two, deployment.state_dir)

    assert environment(deployment, "engine-1")["ENGINE_PORT"] == "8011"
    assert environment(deployment, "rollout")["ROLLOUT_ENGINES"] == "http://127.0.0.1:8010,http://127.0.0.1:8011"


def test_redis_refuses_to_forget_and_listens_here_only(deployment: Deployment) -> None:
    redis = " ".join(deployment.programs[0].command)

    assert "--appendonly yes" in redis
    assert "--appendfsync everysec" in redis
    assert "--maxmemory-policy noeviction" in redis
    assert "--bind 127.0.0.1" in redis


def test_an_index_is_missing_until_it_is_stamped_and_again_when_its_source_changes(
    deployment: Deployment, recipe: Recipe
) -> None:
    (build,) = deployment.missing_indexes()
    build.directory.mkdir(parents=True)
    build.stamp()
    before = deployment.missing_indexes()
    Path(recipe.corpora["books"].source).write_text('{"id": "1", "text": "another text"}\n')

    after = deployment.missing_indexes()

    assert build.command[1:4] == ("-m", "services.retriever.building", recipe.corpora["books"].source)
    assert build.directory == deployment.index_dir / "books"
    assert before == []
    assert [missing.corpus for missing in after] == ["books"]


def test_a_deployment_is_found_again_by_its_state_directory(deployment: Deployment) -> None:
    deployment.state_dir.mkdir()
    deployment.save("")

    assert Deployment.load(deployment.state_dir) == deployment


def test_where_nothing_was_deployed_the_error_says_how_to_deploy(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="searcher up RECIPE"):
        Deployment.load(tmp_path)


def render(tmp_path: Path, *programs: Program) -> configparser.RawConfigParser:
    text = render_config(programs, state_dir=tmp_path, cwd=tmp_path, socket=tmp_path / "s.sock")
    parser = configparser.RawConfigParser(inline_comment_prefixes=(" ;",))
    parser.read_string(text)
    return parser


def test_a_program_is_guarded_and_restarted_for_ever(tmp_path: Path) -> None:
    config = render(tmp_path, Program("toy", ("toy-server", "--name", "two words"), {"TOY_PORT": "8001"}))

    section = config["program:toy"]
    assert section["command"].startswith(sys.executable)
    assert section["command"].endswith("guard.py SIGKILL toy-server --name 'two words'")
    assert (section["autorestart"], section["stopasgroup"], section["killasgroup"]) == ("true", "true", "true")
    assert section["environment"] == 'TOY_PORT="8001"'
    assert section["stdout_logfile"] == str(tmp_path / "logs" / "toy.log")


def test_later_programs_stop_first(tmp_path: Path) -> None:
    config = render(tmp_path, Program("redis", ("a",)), Program("trainer", ("b",)))

    assert config.getint("program:redis", "priority") < config.getint("program:trainer", "priority")


def test_a_percent_sign_and_quotes_survive(tmp_path: Path) -> None:
    config = render(tmp_path, Program("toy", ("a",), {"TOY_FORMAT": '"100%"'}))

    assert config["program:toy"]["environment"] == "TOY_FORMAT='\"100%%\"'"


@pytest.mark.parametrize("value", ["two\nlines", "a ;comment", "both \" and '"])
def test_what_supervisord_would_misread_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(InvalidInput, match="use a simpler path"):
        render(tmp_path, Program("toy", ("a",), {"TOY_PATH": value}))


def test_a_path_too_long_for_a_socket_gets_a_short_name_of_its_own(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)

    assert socket_path(Path("/srv/state")) == Path("/srv/state/supervisor.sock")
    assert len(str(socket_path(deep))) <= 100
    assert socket_path(deep) != socket_path(deep / "other")
