"""One name for one thing: a service's settings, its README, compose.yaml, .env and the embedded deployment agree."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from searcher.cli.embedded.deployment import Deployment
from searcher.cli.settings import CliSettings
from searcher.contracts.recipe import Recipe
from searcher.servicekit.settings import ServiceSettings, SharedSettings

ROOT = Path(__file__).parents[2]
HOMES = {
    "retriever": "services/retriever",
    "reward": "services/reward",
    "rollout": "services/rollout",
    "engine": "services/rollout/engine",
    "trainer": "services/trainer",
    "evaluator": "services/evaluator",
}
NOT_OURS = re.compile(r"^OMP_")


def settings_of(service: str) -> type[ServiceSettings]:
    module = import_module(HOMES[service].replace("/", ".") + ".settings")
    (found,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ServiceSettings) and value.__module__ == module.__name__
    ]
    return found


def names_of(settings: type[BaseSettings]) -> set[str]:
    """Of its own fields and of the sections it consists of; `shared` stands by itself."""
    prefix, fields = settings.model_config["env_prefix"], settings.model_fields
    sections = {name: field.annotation for name, field in fields.items() if _is_section(field.annotation)}
    own = {f"{prefix}{name.upper()}" for name in fields.keys() - sections.keys()}
    return own.union(*(names_of(section) for section in sections.values() if section is not SharedSettings))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseSettings)


@pytest.fixture(scope="module")
def known() -> set[str]:
    classes: list[type[BaseSettings]] = [SharedSettings, CliSettings, *map(settings_of, HOMES)]
    return set().union(*map(names_of, classes))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return loaded


def unknown(names: set[str], known: set[str]) -> list[str]:
    return sorted(name for name in names - known if not NOT_OURS.match(name))


@pytest.mark.parametrize("service", HOMES)
def test_every_setting_stands_in_its_services_readme(service: str) -> None:
    home = ROOT / HOMES[service]
    readme = (home if (home / "README.md").exists() else home.parent) / "README.md"

    missing = sorted(name for name in names_of(settings_of(service)) if f"`{name}`" not in readme.read_text())

    assert missing == []


@pytest.mark.parametrize("service", HOMES)
def test_a_readme_names_no_variable_that_nothing_reads(service: str, known: set[str]) -> None:
    readme = (ROOT / HOMES[service]).joinpath("README.md")
    named = set(re.findall(rf"`({service.upper()}_[A-Z_]+)`", readme.read_text())) if readme.exists() else set()

    assert unknown(named, known) == []


def test_compose_sets_only_what_a_service_reads(compose: dict[str, Any], known: set[str]) -> None:
    for name, service in compose["services"].items():
        assert unknown(set(service.get("environment", {})), known) == [], name


def test_the_embedded_deployment_sets_only_what_a_service_reads(tmp_path: Path, known: set[str]) -> None:
    stage = {"name": "only", "questions": "q", "rules": "searcher", "max_steps": 1}
    recipe = Recipe.model_validate(
        {
            "name": "toy",
            "model": {"path": "m"},
            "questions_per_step": 1,
            "samples_per_question": 2,
            "stages": [stage],
            "engine": {"kv_cache_gib": 1.0},
        }
    )

    for program in Deployment.for_recipe(recipe, tmp_path).programs:
        assert unknown(set(program.environment), known) == [], program.name


def test_every_variable_of_compose_has_its_default_in_the_env_file() -> None:
    text = (ROOT / "compose.yaml").read_text()
    used = dict(re.findall(r"(?<!\$)\$\{([A-Z_]+):-([^}]*)\}", text))
    defaults = dict(
        line.split("=", 1)
        for line in (ROOT / ".env").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )

    assert re.findall(r"(?<!\$)\$\{[A-Z_]+\}", text) == []
    assert {name: value for name, value in used.items() if value} == {
        name: value for name, value in defaults.items() if name != "COMPOSE_PROFILES"
    }


def test_compose_runs_every_service_under_the_hardened_settings(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_an_image_copies_its_own_service_only() -> None:
    targets = re.split(r"^FROM \S+ AS ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    for target in targets:
        name, _, body = target.partition("\n")
        copied = set(re.findall(r"^COPY (services/\w+)", body, re.MULTILINE)) - {"services/__init__"}
        home = {"engine": "rollout", "engine-gpu": "rollout"}.get(name, name)

        assert copied <= {f"services/{home}"}, name
