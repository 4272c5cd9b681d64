"""`python -m services.reward`"""

import sys

from searcher.contracts.errors import InvalidInput
from searcher.servicekit.app import serve
from services.reward.app import create_app
from services.reward.settings import RewardSettings

if __name__ == "__main__":
    settings = RewardSettings()
    try:
        app = create_app(settings)
    except InvalidInput as error:
        sys.exit(f"reward: {error}")
    serve(app, settings, native_loop=True)
