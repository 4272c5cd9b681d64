"""A real vLLM server with our plugin, against Hugging Face in float32: before, during and after weight updates.

The model is tiny, random and has tied embeddings, which is where a reload on CPU goes wrong unless the head is packed
again. One engine serves the whole file; the last test kills it.
"""

import asyncio
import hashlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import REPOSITORY
from rollout_toys import QUESTION, ToyRetriever

from searcher.clients.chat import ChatClient
from searcher.clients.engine import EngineClient, PromptTooLong, Sampled, Sampling
from searcher.contracts.errors import SearcherError
from searcher.contracts.question import RolloutPlan, SearchMode
from searcher.contracts.trajectory import StopReason
from searcher.contracts.weights import WeightVersion
from services.evaluator.openai_model import converse
from services.rollout.episode import episode
from services.rollout.policy import Codec

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

ENGINE_PYTHON = Path(os.environ.get("SEARCHER_ENGINE_PYTHON", REPOSITORY / ".venv-engine" / "bin" / "python"))
MAX_CONTEXT_TOKENS = 2_048
PROMPT = list(b"Ada was born in")
TOLERANCE = 1e-3


def make_model(directory: Path, *, seed: int) -> None:
    """A random Qwen2 with tied embeddings and a tokenizer of one token per byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        chat_template="{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}[assistant]",
    ).save_pretrained(directory)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # vLLM's CPU attention has no kernel for heads smaller than 32
        num_key_value_heads=1,
        max_position_embeddings=MAX_CONTEXT_TOKENS,
        tie_word_embeddings=True,
        eos_token_id=256,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.15)
    model.save_pretrained(directory)


def published(directory: Path, step: int, **changes: Any) -> WeightVersion:
    path = directory / "model.safetensors"
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    version = WeightVersion(run_id="e2e", step=step, location=path.as_uri(), sha256=sha256, num_bytes=len(content))
    return version.model_copy(update=changes)


def logprobs_by_hugging_face(
    directory: Path, prompt: list[int], response: tuple[int, ...], temperature: float = 1.0
) -> list[float]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = torch.tensor([[*prompt, *response]])
    with torch.no_grad():
        logprobs_TV = (model(ids).logits[0] / temperature).log_softmax(-1)
    return [logprobs_TV[position - 1, ids[0, position]].item() for position in range(len(prompt), ids.shape[1])]


def difference(directory: Path, sampled: Sampled, *, prompt: list[int] = PROMPT, temperature: float = 1.0) -> float:
    """The largest distance between the engine's logprobs and those of the model in `directory`."""
    expected = logprobs_by_hugging_face(directory, prompt, sampled.token_ids, temperature)
    return max(abs(ours - theirs) for ours, theirs in zip(sampled.logprobs, expected, strict=True))


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that the engine is started with."""
    directory = tmp_path_factory.mktemp("first")
    make_model(directory, seed=1)
    return directory


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("second")
    make_model(directory, seed=2)
    return directory


@dataclass(frozen=True)
class RunningEngine:
    url: str
    pid: int
    log: Path


@pytest.fixture(scope="session")
def server(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    if not ENGINE_PYTHON.exists():
        pytest.skip(f"no engine environment at {ENGINE_PYTHON}; set SEARCHER_ENGINE_PYTHON")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("engine") / "log"
    environment = os.environ | {
        "ENGINE_PORT": str(port),
        "ENGINE_MODEL_DIR": str(first),
        "ENGINE_MAX_CONTEXT_TOKENS": str(MAX_CONTEXT_TOKENS),
        "ENGINE_KV_CACHE_GIB": "0.125",
        "OMP_NUM_THREADS": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [ENGINE_PYTHON, "-m", "services.rollout.engine"],
            cwd=REPOSITORY,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_it_answers(process, url, log)
        yield RunningEngine(url, process.pid, log)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-4_000:]
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", trust_env=False).is_success:
                return
        time.sleep(0.5)
    raise AssertionError(f"the engine did not start:\n{log.read_text()[-4_000:]}")


@pytest.fixture
async def engine(server: RunningEngine, first: Path) -> AsyncIterator[EngineClient]:
    """The engine, with the weights of `first`."""
    async with EngineClient(server.url) as client:
        if await client.weight_version() not in ("default", published(first, 1).name):
            await client.update_weights(published(first, 1))
        yield client


async def test_logprobs_are_those_of_the_model_before_and_after_an_update(
    engine: EngineClient, first: Path, second: Path
) -> None:
    before = await engine.generate(PROMPT, Sampling(max_tokens=64, seed=1))
    await engine.update_weights(published(second, 2))
    after = await engine.generate(PROMPT, Sampling(max_tokens=64, seed=1))

    assert difference(first, before) < TOLERANCE
    assert difference(second, after) < TOLERANCE
    assert set(after.versions) == {published(second, 2).name}


async def test_logprobs_are_of_the_distribution_that_was_sampled_whatever_the_temperature(
    engine: EngineClient, first: Path
) -> None:
    cool = await engine.generate(PROMPT, Sampling(max_tokens=64, temperature=0.6, seed=1))

    assert difference(first, cool, temperature=0.6) < TOLERANCE


async def test_its_openai_route_can_be_evaluated_like_any_models(engine: EngineClient, server: RunningEngine) -> None:
    """A random model says nothing sensible, but it is asked, counted, stopped, and told when a chat is too long."""
    async with httpx.AsyncClient(trust_env=False) as http:
        (served,) = (await http.get(f"{server.url}/v1/models")).json()["data"]
    plan = RolloutPlan(temperature=0.0, stop_at_answer=True, max_tokens_per_turn=16, search=SearchMode.ONCE)
    long = QUESTION.model_copy(update={"question": "a" * MAX_CONTEXT_TOKENS})

    async with ChatClient(f"{server.url}/v1", served["id"]) as model:
        told = await converse(QUESTION, plan, model, ToyRetriever())  # type: ignore[arg-type]
        cut_off = await converse(long, plan, model, ToyRetriever())  # type: ignore[arg-type]
        chat = [{"role": "user", "content": "?"}]
        said = await model.complete(chat, max_tokens=64, temperature=1.0, seed=1)
        letter = next(letter for letter in said.text if letter.isascii() and letter.isprintable())
        stopped = await model.complete(chat, max_tokens=64, temperature=1.0, seed=1, stop=(letter,))

    assert (told.stop_reason, told.num_tokens) == (StopReason.OUT_OF_TOKENS, 16)
    assert (cut_off.stop_reason, cut_off.segments) == (StopReason.OUT_OF_TOKENS, [])
    assert (stopped.text, stopped.finish_reason) == (said.text.partition(letter)[0], "stop")
    assert said.num_context_tokens > said.num_tokens > stopped.num_tokens


async def test_every_token_of_an_interrupted_turn_is_of_the_weights_it_names(
    engine: EngineClient, first: Path, second: Path
) -> None:
    """In-flight turns freeze, and go on under the new weights with a context computed anew."""
    await engine.update_weights(published(first, 1))
    samplings = [Sampling(max_tokens=1_500, seed=seed) for seed in range(6)]  # some end early by chance
    turns = [asyncio.create_task(engine.generate(PROMPT, sampling)) for sampling in samplings]
    await asyncio.sleep(0.5)
    await engine.update_weights(published(second, 2))
    finished = await asyncio.gather(*turns)

    old, new = published(first, 1).name, published(second, 2).name
    assert any(set(sampled.versions) == {old, new} for sampled in finished)
    for sampled in finished:
        expected = {
            old: logprobs_by_hugging_face(first, PROMPT, sampled.token_ids),
            new: logprobs_by_hugging_face(second, PROMPT, sampled.token_ids),
        }
        for position, (logprob, version) in enumerate(zip(sampled.logprobs, sampled.versions, strict=True)):
            assert abs(logprob - expected[version][position]) < TOLERANCE


async def test_a_damaged_file_leaves_the_old_weights_serving(engine: EngineClient, first: Path, second: Path) -> None:
    version = await engine.weight_version()

    with pytest.raises(SearcherError, match="sha256"):
        await engine.update_weights(published(second, 2, sha256="0" * 64))

    sampled = await engine.generate(PROMPT, Sampling(max_tokens=32, seed=3))
    assert set(sampled.versions) == {version}
    assert difference(first, sampled) < TOLERANCE


async def test_a_file_that_lacks_a_tensor_leaves_the_old_weights_serving(
    engine: EngineClient, first: Path, second: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(second / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")

    with pytest.raises(SearcherError, match="up_proj"):
        await engine.update_weights(published(tmp_path, 2))

    sampled = await engine.generate(PROMPT, Sampling(max_tokens=32, seed=3))
    assert difference(first, sampled) < TOLERANCE


async def test_an_update_that_somebody_left_halfway_is_done_again(engine: EngineClient, second: Path) -> None:
    version = published(second, 2)
    async with httpx.AsyncClient(base_url=engine.base_url, trust_env=False) as other:
        file = {"location": version.location, "sha256": version.sha256, "num_bytes": version.num_bytes}
        await other.post("/init_weight_transfer_engine", json={"init_info": file})
        await other.post("/pause?mode=keep&clear_cache=true")
        await other.post("/start_weight_update")

    await engine.update_weights(version)

    sampled = await engine.generate(PROMPT, Sampling(max_tokens=32, seed=4))
    assert difference(second, sampled) < TOLERANCE


async def test_a_stop_string_may_span_tokens_and_all_of_its_tokens_are_kept(engine: EngineClient, first: Path) -> None:
    codec = Codec.open(first)
    greedy = await engine.generate(PROMPT, Sampling(max_tokens=60, temperature=0.0))
    readable = re.search(r"[ -~]{3}", codec.written(greedy.token_ids))  # a byte is a token, and not every one a letter
    assert readable
    stop = readable[0]

    stopped = await engine.generate(PROMPT, Sampling(max_tokens=60, temperature=0.0, stop=(stop,)))

    end = len(stopped.token_ids)
    assert stopped.stop_string == stop
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == greedy.token_ids[:end]
    assert codec.written(stopped.token_ids).endswith(stop)


async def test_a_seed_repeats_a_sample(engine: EngineClient) -> None:
    one, same, other = [await engine.generate(PROMPT, Sampling(max_tokens=32, seed=seed)) for seed in (5, 5, 6)]

    assert one.token_ids == same.token_ids
    assert one.token_ids != other.token_ids


async def test_ids_that_fill_the_context_are_a_fact_and_foreign_ids_an_error(engine: EngineClient) -> None:
    with pytest.raises(PromptTooLong):
        await engine.generate([1] * MAX_CONTEXT_TOKENS, Sampling(max_tokens=1))
    with pytest.raises(SearcherError, match="vocabulary"):
        await engine.generate([299_999], Sampling(max_tokens=1))


async def test_an_episode_ends_with_the_engines_limit_and_its_logprobs_are_the_models(
    engine: EngineClient, first: Path
) -> None:
    class Direct:
        async def sample(self, token_ids: list[int], sampling: Sampling) -> Sampled:
            return await engine.generate(token_ids, sampling)

    plan = RolloutPlan(template="bare", max_tokens_per_turn=40, seed=1)
    story = episode(
        QUESTION, plan, sample=0, name="g.0", policy=Direct(), codec=Codec.open(first), retriever=ToyRetriever()
    )
    trajectory = [event async for event in story][-1].trajectory

    assert trajectory is not None
    assert trajectory.stop_reason is StopReason.OUT_OF_TOKENS
    expected = logprobs_by_hugging_face(first, list(trajectory.prompt_ids), tuple(trajectory.token_ids))
    assert max(abs(a - b) for a, b in zip(trajectory.logprobs, expected, strict=True)) < TOLERANCE


def test_killing_the_server_leaves_nothing_behind(server: RunningEngine) -> None:
    """Without the plugin's guard, EngineCore lives on and keeps its memory (vllm#55510)."""
    children = children_of(server.pid)
    assert children, "the engine core is a process of its own"

    os.kill(server.pid, signal.SIGKILL)

    deadline = time.monotonic() + 30
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline, f"still there: {[c for c in children if is_running(c)]}"
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
