"""Settings -> the rule sets that this service knows: the built-in ones, and those that need something outside."""

from collections.abc import Iterable, Mapping
from importlib import import_module

from pydantic import TypeAdapter, ValidationError

from searcher.contracts.base import Name
from searcher.contracts.errors import InvalidInput
from services.reward.response import Check
from services.reward.rules import JUDGED, REMOTE, RULES, Rules, by_name
from services.reward.settings import RewardSettings

_NAME: TypeAdapter[str] = TypeAdapter(Name)


def catalogue(settings: RewardSettings) -> dict[str, Rules]:
    """Rule sets under names and aliases. Raises InvalidInput that names the setting to mend."""
    known = [*RULES.values()]
    if settings.judge_url is not None:
        known.append(JUDGED)
    if settings.remote_url is not None:
        known.append(REMOTE)
    if settings.custom is None:
        return by_name(known)
    try:
        return by_name([*known, *_imported(settings.custom)])
    except InvalidInput as error:
        raise InvalidInput(f"REWARD_CUSTOM={settings.custom}: {error}") from error.__cause__


def _imported(entry_point: str) -> list[Rules]:
    """`my_package.rewards:rules` is a Rules, several, or a function that returns them."""
    module_name, _, attribute = entry_point.partition(":")
    if not module_name or not attribute:
        raise InvalidInput("write it as my_package.rewards:rules")
    try:
        found = getattr(import_module(module_name), attribute)
        value = found() if callable(found) else found
    except Exception as error:
        raise InvalidInput(f"does not load: {type(error).__name__}: {error}") from error
    rule_sets = [value] if isinstance(value, Rules) else list(value) if isinstance(value, Iterable) else []
    if not rule_sets:
        raise InvalidInput(f"wanted services.reward.rules.Rules, one or several, got {value!r:.100}")
    for rules in rule_sets:
        _check(rules)
    return rule_sets


def _check(rules: object) -> None:
    if not isinstance(rules, Rules):
        raise InvalidInput(f"wanted services.reward.rules.Rules, got {rules!r:.100}")
    for name in (rules.name, *rules.aliases):
        try:
            _NAME.validate_python(name)
        except ValidationError:
            raise InvalidInput(f"{name!r} is no name; use letters, digits, dots, dashes and underscores") from None
    if not isinstance(rules.parts, Mapping) or not rules.parts or not all(map(callable, rules.parts.values())):
        raise InvalidInput(f"{rules.name}: parts must name at least one function, got {rules.parts!r:.100}")
    if not isinstance(rules.checks, tuple) or not all(isinstance(check, Check) for check in rules.checks):
        raise InvalidInput(f"{rules.name}: checks must be a tuple of Check, got {rules.checks!r:.100}")
    if rules.asks is not None:
        raise InvalidInput(f"{rules.name}: asks must be None; judge and remote belong to the built-in rule sets")
