"""`python -m services.retriever`: serve until SIGTERM."""

import os

from searcher.servicekit.app import serve
from services.retriever.app import create_app
from services.retriever.settings import RetrieverSettings

if __name__ == "__main__":
    # libgomp reads this when faiss is loaded. Its waiting threads would otherwise spin on the cores that the encoder
    # needs; next to busy neighbours a search takes several times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    settings = RetrieverSettings()
    serve(create_app(settings), settings, native_loop=True)
