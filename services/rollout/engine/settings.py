"""`ENGINE_*`: what one vLLM server is started with."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from searcher.servicekit.settings import ServiceSettings


class EngineSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="ENGINE_", env_ignore_empty=True)

    port: int = Field(default=8010, ge=1, le=65_535)
    model_dir: Path
    """A Hugging Face model directory: config.json, *.safetensors, tokenizer. The weights until a run publishes some."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """float32 on CPUs without AMX or AVX-512-BF16: bfloat16 is emulated there and 4 to 8 times slower."""
    device: Literal["cpu", "cuda"] = "cpu"
    max_context_tokens: int = Field(default=8_192, ge=32)
    """Prompt and response together. A longer prompt is refused; a response is cut here."""
    max_num_seqs: int = Field(default=128, ge=1)
    """Sequences that generate at the same time; more wait in the engine's queue."""
    kv_cache_gib: float | None = Field(default=None, gt=0.0)
    """Memory for the KV cache. Required on CPU; on GPU vLLM takes what `gpu_memory_utilization` leaves."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0.0, lt=1.0)
    tensor_parallel_size: int = Field(default=1, ge=1)
