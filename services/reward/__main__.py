"""`python -m services.reward`"""

from searcher.servicekit.app import serve
from services.reward.app import create_app
from services.reward.settings import RewardSettings

if __name__ == "__main__":
    settings = RewardSettings()
    serve(create_app(settings), settings)
