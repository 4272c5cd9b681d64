"""recipe -> where everything of its deployment is: folders, ports, URLs, and what other commands find again on disk."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from searcher.cli.embedded import logs
from searcher.cli.embedded.ports import ports_of_programs
from searcher.cli.settings import PROJECT_ROOT, CliSettings
from searcher.contracts.base import Contract
from searcher.contracts.errors import InvalidInput, NotFound
from searcher.contracts.recipe import Recipe
from searcher.recipes import explain, load_recipe


class SavedLayout(Contract):
    """`deployment.json` in the state directory."""

    recipe: Recipe
    port_offset: int
    runs_dir: str
    engine_python: str


@dataclass(frozen=True)
class Layout:
    recipe: Recipe
    state_dir: Path
    """Everything that can be made again: logs, indexes, published weights, Redis' files."""
    port_offset: int
    runs_dir: Path
    """What was learned: checkpoints, metrics, trajectories."""
    engine_python: Path
    root: Path = PROJECT_ROOT

    @classmethod
    def for_recipe(
        cls, recipe: Path | Recipe, state_dir: Path, port_offset: int = 0, *, runs_dir: Path | None = None
    ) -> Self:
        """Raises InvalidInput for a recipe that is not well-formed."""
        settings = CliSettings()
        return cls(
            recipe=recipe if isinstance(recipe, Recipe) else load_recipe(recipe),
            state_dir=state_dir.resolve(),
            port_offset=port_offset,
            runs_dir=(runs_dir or settings.runs_dir).resolve(),
            # Not resolved: the link in the environment is what makes Python find the environment.
            engine_python=settings.engine_python.absolute(),
        )

    @classmethod
    def load(cls, state_dir: Path) -> Self:
        """The one that was started last in `state_dir`. Raises NotFound if there was none."""
        path = state_dir.resolve() / "deployment.json"
        try:
            saved = SavedLayout.model_validate_json(path.read_text())
        except FileNotFoundError:
            raise NotFound(f"no deployment in {state_dir}; start one with `searcher up RECIPE`") from None
        except ValidationError as error:
            raise InvalidInput(f"{path} was written by another version of Searcher: {explain(error)}") from None
        return cls(
            recipe=saved.recipe,
            state_dir=state_dir.resolve(),
            port_offset=saved.port_offset,
            runs_dir=Path(saved.runs_dir),
            engine_python=Path(saved.engine_python),
        )

    def save(self, config: str) -> None:
        """Leave behind what supervisord reads and what `load` finds."""
        saved = SavedLayout(
            recipe=self.recipe,
            port_offset=self.port_offset,
            runs_dir=str(self.runs_dir),
            engine_python=str(self.engine_python),
        )
        self.config_path.write_text(config)
        (self.state_dir / "deployment.json").write_text(saved.model_dump_json(indent=1))

    def make_folders(self) -> None:
        logs_dir = self.log_path("supervisord").parent
        for folder in (logs_dir, self.redis_dir, self.index_dir, self.runs_dir, self.weights_dir, self.evaluations_dir):
            folder.mkdir(parents=True, exist_ok=True)

    # --- folders and files --------------------------------------------------------------------------------------------

    @property
    def redis_dir(self) -> Path:
        return self.state_dir / "redis"

    @property
    def weights_dir(self) -> Path:
        return self.state_dir / "weights"

    @property
    def evaluations_dir(self) -> Path:
        return self.state_dir / "evaluations"

    @property
    def index_dir(self) -> Path:
        return self.state_dir / "indexes" / self.recipe.name

    @property
    def config_path(self) -> Path:
        return self.state_dir / "supervisord.conf"

    def log_path(self, program: str) -> Path:
        return logs.log_path(self.state_dir, program)

    # --- ports and URLs -----------------------------------------------------------------------------------------------

    @cached_property
    def ports(self) -> dict[str, int]:
        """By program."""
        return ports_of_programs(
            self.port_offset, num_engines=self.recipe.engine.replicas, alongside=self.evaluates_alongside
        )

    def url(self, program: str) -> str:
        return f"http://127.0.0.1:{self.ports[program]}"

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.ports['redis']}/0"

    @property
    def engines(self) -> tuple[str, ...]:
        """The programs that answer while training; `engine-evaluation` is not among them."""
        return tuple(f"engine-{replica}" for replica in range(self.recipe.engine.replicas))

    @property
    def evaluates_alongside(self) -> bool:
        return self.recipe.evaluation is not None and self.recipe.evaluation.alongside
