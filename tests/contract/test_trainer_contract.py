"""The real client against the real app. Runs are started for real and stopped before they have loaded a model."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from trainer_toys import make_recipe

from searcher.clients.trainer import TrainerClient
from searcher.contracts.errors import Conflict, InvalidInput, NotFound
from searcher.contracts.run import RunRequest, RunState
from searcher.servicekit.settings import SharedSettings
from services.trainer.app import create_app
from services.trainer.rundir import RunDirectory
from services.trainer.settings import TrainerSettings

pytestmark = pytest.mark.anyio


class Service:
    def __init__(self, app: FastAPI, client: TrainerClient, http: httpx.AsyncClient, folder: Path) -> None:
        self.app, self.client, self.http, self.folder = app, client, http, folder

    def past_run(self, state: RunState = RunState.DONE) -> RunDirectory:
        """A run of earlier times, with two steps behind it."""
        run = RunDirectory(self.folder / "runs" / "past")
        run.create(make_recipe(self.folder))
        run.record = run.record.model_copy(update={"state": state})
        run.event("created")
        run.write_metrics({"step": 0, "stage": "", "eval/f1": 0.1})
        for step in (1, 2):
            run.write_metrics({"step": step, "stage": "only", "reward": step / 4})
        return run


@contextlib.asynccontextmanager
async def running(settings: TrainerSettings) -> AsyncIterator[tuple[FastAPI, TrainerClient, httpx.AsyncClient]]:
    app = create_app(settings)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        TrainerClient("http://trainer", transport=transport, attempts=1) as client,
        httpx.AsyncClient(transport=transport, base_url="http://trainer") as http,
    ):
        yield app, client, http


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> TrainerSettings:
    return TrainerSettings(runs_dir=tmp_path / "runs", shared=SharedSettings(redis_url=redis_url))


@pytest.fixture
async def service(tmp_path: Path, settings: TrainerSettings) -> AsyncIterator[Service]:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    async with running(settings) as (app, client, http):
        yield Service(app, client, http, tmp_path)


async def test_a_run_is_started_and_stopped(service: Service) -> None:
    started = await service.client.start(RunRequest(run_id="demo", recipe=make_recipe(service.folder)))
    stopped = await service.client.stop("demo")

    assert (started.state, started.step, started.max_steps) == (RunState.RUNNING, 0, 4)
    assert stopped.state is RunState.STOPPED
    assert [run.run_id for run in await service.client.runs()] == ["demo"]


async def test_a_run_that_exists_is_a_conflict(service: Service) -> None:
    service.past_run()

    with pytest.raises(Conflict, match="'past' exists"):
        await service.client.start(RunRequest(run_id="past", recipe=make_recipe(service.folder)))


async def test_a_recipe_that_cannot_work_is_invalid_input(service: Service) -> None:
    recipe = make_recipe(service.folder, model={"path": "nowhere"})

    with pytest.raises(InvalidInput, match=r"model\.path"):
        await service.client.start(RunRequest(run_id="demo", recipe=recipe))


async def test_status_carries_the_newest_figures(service: Service) -> None:
    service.past_run()

    status = await service.client.run("past")

    assert (status.state, status.stage, status.step) == (RunState.DONE, "only", 2)
    assert status.metrics == {"step": 2, "reward": 0.5}


async def test_metrics_come_from_a_step_on(service: Service) -> None:
    service.past_run()

    assert [line["step"] for line in await service.client.metrics("past", after_step=1)] == [2]
    assert [line["step"] for line in await service.client.metrics("past")] == [1, 2]
    assert [line["step"] for line in await service.client.metrics("past", after_step=-1)] == [0, 1, 2]


async def test_checkpoints_are_listed(service: Service) -> None:
    run = service.past_run()
    (run.checkpoints / "step-000002").mkdir(parents=True)
    (run.checkpoints / "step-000002" / "weights.pt").write_bytes(b"12345")

    (row,) = await service.client.checkpoints("past")

    assert (row.step, row.num_bytes) == (2, 5)


async def test_events_and_metrics_are_streamed_from_the_first_on(service: Service) -> None:
    service.past_run()

    text = (await service.http.get("/v1/runs/past/events")).text

    kinds = [line for line in text.splitlines() if line.startswith(("event:", "id:"))]
    assert kinds == ["event: event", "event: metrics", "id: 0", "event: metrics", "id: 1", "event: metrics", "id: 2"]


async def test_published_weights_can_be_downloaded(service: Service) -> None:
    version = "past-1f0c9a2b-000002"
    folder = service.past_run().path / "weights" / version
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")

    response = await service.http.get(f"/v1/weights/{version}/model.safetensors")

    assert (response.status_code, response.content) == (200, b"weights")


@pytest.mark.parametrize(
    "path", ["/v1/weights/..%2f..%2fpast/model.safetensors", "/v1/weights/.hidden/model.safetensors"]
)
async def test_names_cannot_leave_the_folder(service: Service, path: str) -> None:
    assert (await service.http.get(path)).status_code in (404, 422)


async def test_what_does_not_exist_is_not_found(service: Service) -> None:
    with pytest.raises(NotFound, match="no run 'nobody'"):
        await service.client.run("nobody")
    with pytest.raises(NotFound):
        await service.client.stop("nobody")


async def test_probes_and_metrics_answer(service: Service) -> None:
    service.past_run()

    assert (await service.http.get("/healthz")).status_code == 200
    assert (await service.http.get("/readyz")).status_code == 200
    assert "searcher_trainer_reward_mean 0.5" in (await service.http.get("/metrics")).text


async def test_without_redis_it_is_alive_but_not_ready(tmp_path: Path) -> None:
    nowhere = SharedSettings(redis_url="redis://127.0.0.1:1/0")
    async with running(TrainerSettings(runs_dir=tmp_path / "runs", shared=nowhere)) as (_, _, http):
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/readyz")).status_code == 503


def test_the_openapi_page_names_every_route(settings: TrainerSettings) -> None:
    paths = create_app(settings).openapi()["paths"]

    assert {path for path in paths if path.startswith("/v1")} == {
        "/v1/runs",
        "/v1/runs/{run_id}",
        "/v1/runs/{run_id}/stop",
        "/v1/runs/{run_id}/resume",
        "/v1/runs/{run_id}/metrics",
        "/v1/runs/{run_id}/checkpoints",
        "/v1/runs/{run_id}/events",
        "/v1/weights/{version}/model.safetensors",
    }
