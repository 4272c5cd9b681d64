"""The engine's side of an update: what is verified before the model is touched, and how the server is started."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from services.rollout.engine.__main__ import command, environment
from services.rollout.engine.fetch import Announced, BadWeights, check_shapes, fetch, model_shapes, tensor_shapes
from services.rollout.engine.guard import RequireToken
from services.rollout.engine.settings import EngineSettings


def safetensors_bytes(**shapes: tuple[int, ...]) -> bytes:
    header = json.dumps(
        {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    )
    return len(header).to_bytes(8, "little") + header.encode()


WEIGHTS = safetensors_bytes(a=(2, 3), b=(4,))


def announced(location: str, content: bytes = WEIGHTS) -> Announced:
    return Announced(location, hashlib.sha256(content).hexdigest(), len(content))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(WEIGHTS)
    return path


@pytest.fixture
def trainer_url(published: Path) -> Iterator[str]:
    """Serves the published file to whoever knows the token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers.get("Authorization") == "Bearer secret"
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(published.read_bytes() if allowed else b"")

        def log_message(self, *_: object) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/model.safetensors"
        server.shutdown()
        thread.join()


def test_a_file_is_verified_where_it_lies(published: Path) -> None:
    local = fetch(announced(published.as_uri()), api_key=None)
    local.discard()

    assert local.path == published
    assert published.exists()


def test_a_download_is_verified_and_can_be_discarded(trainer_url: str) -> None:
    local = fetch(announced(trainer_url), api_key="secret")

    assert local.path.read_bytes() == WEIGHTS
    local.discard()
    assert not local.path.exists()


def test_a_download_without_the_token_is_an_error(trainer_url: str) -> None:
    with pytest.raises(OSError, match="401"):
        fetch(announced(trainer_url), api_key=None)


@pytest.mark.parametrize("content", [WEIGHTS[:-1], WEIGHTS + b"x", WEIGHTS[:-1] + b"x"])
def test_a_file_that_differs_from_the_announced_one_is_refused(published: Path, content: bytes) -> None:
    published.write_bytes(content)

    with pytest.raises(BadWeights):
        fetch(announced(published.as_uri()), api_key=None)


@pytest.mark.parametrize("location", ["ftp://trainer/model.safetensors", "model.safetensors"])
def test_only_files_and_http_are_fetched(location: str) -> None:
    with pytest.raises(BadWeights, match="file://"):
        fetch(announced(location), api_key=None)


def test_the_header_names_all_tensors(published: Path) -> None:
    assert tensor_shapes(published) == {"a": (2, 3), "b": (4,)}


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 16, (3).to_bytes(8, "little") + b"[1]", (2).to_bytes(8, "little") + b"{"]
)
def test_what_is_no_safetensors_file_is_refused(published: Path, content: bytes) -> None:
    published.write_bytes(content)

    with pytest.raises(BadWeights, match="not a safetensors file"):
        tensor_shapes(published)


def test_a_model_directory_may_have_several_files(tmp_path: Path) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(safetensors_bytes(a=(1,)))
    (tmp_path / "model-2.safetensors").write_bytes(safetensors_bytes(b=(2,)))

    assert model_shapes(tmp_path) == {"a": (1,), "b": (2,)}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"a": (2, 3)}, "b is missing"),
        ({"a": (2, 3), "b": (4,), "c": (1,)}, "c is not of this model"),
        ({"a": (3, 2), "b": (4,)}, r"a has shape \(3, 2\)"),
    ],
)
def test_a_file_that_is_not_the_whole_model_is_refused(given: dict[str, tuple[int, ...]], problem: str) -> None:
    with pytest.raises(BadWeights, match=problem):
        check_shapes(given, {"a": (2, 3), "b": (4,)}, tied_head=False)


def test_a_tied_head_may_be_there_or_not() -> None:
    body = {"a": (2, 3)}
    whole = body | {"lm_head.weight": (9, 3)}

    check_shapes(body, whole, tied_head=True)
    check_shapes(whole, body, tied_head=True)
    with pytest.raises(BadWeights, match=r"lm_head\.weight is missing"):
        check_shapes(body, whole, tied_head=False)


def test_the_server_is_started_with_the_proven_flags(tmp_path: Path) -> None:
    words = command(EngineSettings(model_dir=tmp_path, kv_cache_gib=0.5, max_context_tokens=1_024))

    line = " ".join(words)
    assert "--generation-config vllm" in line
    assert "--enable-scale-out" in words
    assert "--kv-cache-memory-bytes 536870912" in line
    assert "--max-model-len 1024" in line
    assert "--block-size 32" in line


def test_a_gpu_engine_has_no_cpu_flags(tmp_path: Path) -> None:
    words = command(EngineSettings(model_dir=tmp_path, device="cuda", dtype="bfloat16", tensor_parallel_size=2))

    line = " ".join(words)
    assert "--tensor-parallel-size 2" in line
    assert "--enforce-eager" not in words


def test_the_environment_keeps_the_callers_thread_count_and_drops_empty_variables(tmp_path: Path) -> None:
    inherited = {"OMP_NUM_THREADS": "4", "VLLM_CPU_KVCACHE_SPACE": "", "PATH": "/bin"}

    variables = environment(EngineSettings(model_dir=tmp_path), inherited)

    assert variables["OMP_NUM_THREADS"] == "4"
    assert "VLLM_CPU_KVCACHE_SPACE" not in variables
    assert variables["VLLM_SERVER_DEV_MODE"] == "1"
    assert environment(EngineSettings(model_dir=tmp_path), {})["OMP_NUM_THREADS"] == "1"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "token", "status"),
    [("/pause", None, 401), ("/pause", "Bearer wrong", 401), ("/pause", "Bearer secret", 200), ("/health", None, 200)],
)
async def test_every_route_of_the_engine_asks_for_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, token: str | None, status: int
) -> None:
    (tmp_path / "key").write_text("secret\n")
    monkeypatch.setenv("SEARCHER_API_KEY_FILE", str(tmp_path / "key"))
    sent: list[dict[str, object]] = []

    async def app(scope: object, receive: object, send: object) -> None:
        sent.append({"type": "http.response.start", "status": 200})

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    headers = [] if token is None else [(b"authorization", token.encode())]
    await RequireToken(app)({"type": "http", "path": path, "headers": headers}, None, send)

    assert sent[0]["status"] == status
