"""`python -m services.trainer`: serve until SIGTERM."""

from searcher.servicekit.app import serve
from services.trainer.app import create_app
from services.trainer.settings import TrainerSettings

if __name__ == "__main__":
    settings = TrainerSettings()
    serve(create_app(settings), settings)
