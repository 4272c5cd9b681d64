"""`python -m services.rollout`"""

from searcher.servicekit.app import serve
from services.rollout.app import create_app
from services.rollout.settings import RolloutSettings

if __name__ == "__main__":
    settings = RolloutSettings()
    serve(create_app(settings), settings)
