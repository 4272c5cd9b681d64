from searcher.servicekit.app import serve
from services.evaluator.app import create_app
from services.evaluator.settings import EvaluatorSettings

settings = EvaluatorSettings()
serve(create_app(settings), settings)
