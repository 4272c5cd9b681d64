"""The locked sets hold what the code imports, and nothing of the machine on which they were made."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETS = {
    "retriever": "services/retriever",
    "reward": "services/reward",
    "rollout": "services/rollout",
    "trainer": "services/trainer",
    "evaluator": "services/evaluator",
    "cli": "searcher/cli",
}
SHARED = ("searcher/contracts", "searcher/qa", "searcher/servicekit", "searcher/clients", "searcher/recipes.py")
NOT_IN_THE_IMAGE = {
    # The export of an encoder runs once, where torch is; its images serve what was exported.
    "services/retriever/encoders/export.py",
    # For models that do not fit one ONNX file: whoever serves one installs torch beside it.
    "services/retriever/encoders/torch_encoder.py",
}


def sources(path: str) -> list[Path]:
    here = ROOT / path
    files = [here] if here.is_file() else sorted(here.rglob("*.py"))
    own_image = {"services/rollout": "services/rollout/engine"}.get(path)
    return [
        file
        for file in files
        if str(file.relative_to(ROOT)) not in NOT_IN_THE_IMAGE
        and not (own_image and file.is_relative_to(ROOT / own_image))
    ]


def imports(file: Path) -> set[str]:
    found = set[str]()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"searcher", "services", "demo", "__future__"}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("name", SETS)
def test_an_image_has_every_package_that_its_code_imports(name: str) -> None:
    provided_by, pinned = packages_distributions(), set(pins(name))
    for file in [file for path in (SETS[name], *SHARED) for file in sources(path)]:
        for module in imports(file):
            providers = {re.sub(r"[-_.]+", "-", provider).lower() for provider in provided_by.get(module, [module])}

            assert providers & pinned, f"{file.relative_to(ROOT)} imports {module}, which requirements/{name}.txt lacks"


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.stem)
def test_every_package_is_pinned_to_a_public_version(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]

    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9A-Za-z.]*", line)] == []


@pytest.mark.parametrize("name", SETS)
def test_images_and_the_environment_of_the_tests_agree_on_versions(name: str) -> None:
    together = pins("services")

    assert {key: version for key, version in pins(name).items() if together.get(key) != version} == {}
