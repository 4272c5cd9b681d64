"""Our part of vLLM: the weight-transfer backend `searcher`, and a guard against orphans.

An update is two calls with a promise between them:

    init_weight_transfer_engine   fetch and verify the announced file; the model serves on, and a bad file ends here
    start, update, finish         (paused) replace all weights in one step, so no half-loaded model is ever left waiting

vLLM loads this through the entry point `vllm.general_plugins`, in the API server, in EngineCore and in every worker.
"""

import ctypes
import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searcher.servicekit.settings import SharedSettings
from services.rollout.engine.fetch import Announced, LocalFile, check_shapes, fetch, model_shapes, tensor_shapes

BACKEND = "searcher"
PR_SET_PDEATHSIG = 1


def register() -> None:
    """The entry point. Safe to repeat: vLLM calls it more than once per process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    _die_with_parent()
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, _backend())


def _die_with_parent() -> None:
    """Without this, killing the API server with -9 leaves EngineCore behind, with its memory."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent.pid:  # it died before the line above
        os._exit(1)


def _backend() -> type[Any]:
    """Built on demand: the base classes exist in vLLM's environment only."""
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )

    @dataclass
    class Init(WeightTransferInitInfo):  # type: ignore[misc]
        location: str
        sha256: str
        num_bytes: int

    @dataclass
    class Update(WeightTransferUpdateInfo):  # type: ignore[misc]
        sha256: str

    class PullWeights(WeightTransferEngine[Init, Update]):  # type: ignore[misc]
        init_info_cls, update_info_cls = Init, Update
        verified: tuple[str, LocalFile] | None = None

        def init_transfer_engine(self, init_info: Init) -> None:
            self.shutdown()
            announced = Announced(init_info.location, init_info.sha256, init_info.num_bytes)
            local = fetch(announced, api_key=SharedSettings().api_key)
            try:
                expected = model_shapes(Path(self.model_config.model))
                tied = bool(getattr(self.model_config.hf_config, "tie_word_embeddings", False))
                check_shapes(tensor_shapes(local.path), expected, tied_head=tied)
            except BaseException:
                local.discard()
                raise
            self.verified = (init_info.sha256, local)

        def start_weight_update(self) -> None:
            if self.verified is None:
                raise RuntimeError("no verified weights: call init_weight_transfer_engine with a location first")

        def receive_weights(self, update_info: Update) -> None:
            if self.verified is None or self.verified[0] != update_info.sha256:
                raise RuntimeError(f"weights {update_info.sha256} are not the verified ones; nothing was changed")
            try:
                replace_weights(self.model, self.model_config, self.verified[1].path)
            except BaseException:
                # Half of the model is gone. Start anew rather than ever sample from the rest.
                traceback.print_exc()
                os._exit(1)

        def finish_weight_update(self) -> None:
            self.shutdown()

        def shutdown(self) -> None:
            if self.verified is not None:
                self.verified[1].discard()
                self.verified = None

    return PullWeights


def replace_weights(model: Any, model_config: Any, path: Path) -> None:
    """Load a safetensors file of Hugging Face names into a served model: fused, sharded and packed as at start."""
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    initialize_layerwise_reload(model)
    model.load_weights(_tensors(path))
    finalize_layerwise_reload(model, model_config)
    _repack_head(model)


def _tensors(path: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (not a dict)
            yield name, file.get_tensor(name)


def _repack_head(model: Any) -> None:
    """On CPU, oneDNN keeps a packed copy of lm_head, and a reload never refreshes it if it is tied to the embedding:

    logprobs would come from the new body and the old head, off by up to a nat, with plausible text.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and module.weight.numel():
            module.quant_method.process_weights_after_loading(module)
