"""The service: routes in front of a backend, which is an index here (`serving`) or search engines (`web`)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from searcher.servicekit.app import create_service
from searcher.servicekit.frame import Framed
from services.retriever.backend import Backend
from services.retriever.routes import dropin, search
from services.retriever.serving.cache import RedisCache
from services.retriever.serving.engine import Engine
from services.retriever.serving.library import Library
from services.retriever.serving.shelf import Shelf
from services.retriever.settings import RetrieverSettings


def create_app(settings: RetrieverSettings) -> Framed:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        backend = open_backend(settings)
        await backend.start()
        app.state.backend = backend
        yield
        await backend.close()

    async def is_ready(app: FastAPI) -> None:
        await backend().check()

    def backend() -> Backend:
        found: Backend = app.state.backend
        return found

    app = create_service(
        "retriever", summary="Queries -> passages", settings=settings, lifespan=lifespan, is_ready=is_ready
    )
    search.add_routes(app, backend, settings=settings)
    dropin.add_routes(app, backend, deadline_seconds=settings.deadline_seconds)
    return app


def open_backend(settings: RetrieverSettings) -> Backend:
    if settings.backend == "web":
        from services.retriever.web.backend import open_web_backend

        return open_web_backend(settings)
    assert settings.index_dir is not None
    engine = Engine(
        max_batch=settings.max_batch,
        bulk_slice=settings.bulk_slice,
        interactive_queries=settings.interactive_queries,
        cache_entries=settings.cache_entries,
        shared_cache=RedisCache(settings.shared.redis_url) if settings.redis_cache else None,
    )
    library = Library(num_threads=settings.threads, encoder_url=settings.encoder_url, encoder_key=settings.encoder_key)
    return Shelf(library, engine, settings.index_dir, watch_seconds=settings.watch_seconds)
