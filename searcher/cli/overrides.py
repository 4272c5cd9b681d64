"""A recipe file and `--set KEY=VALUE` -> the recipe with single values replaced."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from searcher.contracts.errors import InvalidInput, NotFound
from searcher.contracts.recipe import Recipe
from searcher.recipes import parse_recipe


def recipe_with(path: Path, overrides: Sequence[str]) -> Recipe:
    """Overrides name a value by its full key: `trainer.learning_rate=1e-5`, `stages.0.max_steps=5`."""
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise NotFound(f"{path}: no such recipe; see `ls recipes/`") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise InvalidInput(f"--set {override}: write it as KEY=VALUE, e.g. trainer.learning_rate=1e-5")
        _replace(table, key.split("."), _value(value), override)
    return parse_recipe(table, source=str(path), base=path.parent)


def _replace(table: dict[str, Any], keys: Sequence[str], value: Any, override: str) -> None:
    """Set a value in nested tables and lists; which keys exist, and which values fit, the contract decides."""
    here: Any = table
    for depth, key in enumerate(keys):
        if not isinstance(here, dict | list):
            raise InvalidInput(f"--set {override}: {'.'.join(keys[:depth])} is a single value")
        place: Any = _position(here, key, override) if isinstance(here, list) else key
        if depth == len(keys) - 1:
            here[place] = value
        elif isinstance(here, dict):
            here = here.setdefault(place, {})
        else:
            here = here[place]


def _position(values: Sequence[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(values):
        raise InvalidInput(f"--set {override}: {key!r} is not one of the list's positions 0 to {len(values) - 1}")
    return int(key)


def _value(text: str) -> Any:
    """As TOML reads it; what is no TOML value is a string (`--set model.path=/models/mine`)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
