"""`python -m services.reward`"""

import gc
import sys

from searcher.contracts.errors import InvalidInput
from searcher.servicekit.app import serve
from services.reward.app import create_app
from services.reward.settings import RewardSettings


def collect_garbage_seldom() -> None:
    """Scoring makes many objects and no cycles: looking for cycles took a third of this service's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)


if __name__ == "__main__":
    settings = RewardSettings()
    try:
        app = create_app(settings)
    except InvalidInput as error:
        sys.exit(f"reward: {error}")
    collect_garbage_seldom()
    serve(app, settings, native_loop=True)
