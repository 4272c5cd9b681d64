"""Text -> unit vectors, by transformers. With `export_encoder`, the only place of the retriever that needs torch."""

# B = texts of one batch; T = tokens, right-padded; D = dimensions
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from searcher.contracts.errors import InvalidInput
from services.retriever.encoders.card import TORCH_FOLDER
from services.retriever.encoders.local import LocalEncoder, pool
from services.retriever.encoders.protocol import Vectors

_GPU_BATCH_TOKENS = 32_768


class TorchEncoder(LocalEncoder):
    """On a GPU if there is one, in half precision there."""

    def __init__(self, folder: Path, *, num_threads: int) -> None:
        super().__init__(folder)
        try:
            import torch
            import transformers
        except ModuleNotFoundError as error:
            raise InvalidInput(
                f"{folder}: its backend is torch, but {error.name} is not installed; install torch and transformers"
            ) from None
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._on_gpu = torch.cuda.is_available()
        if self._on_gpu:
            self.batch_tokens = _GPU_BATCH_TOKENS
        else:
            torch.set_num_threads(num_threads)
        dtype = torch.float16 if self._on_gpu else torch.float32
        model = transformers.AutoModel.from_pretrained(folder / TORCH_FOLDER, dtype=dtype)
        self._model = model.eval().to("cuda" if self._on_gpu else "cpu")
        if (dim := self._model.config.hidden_size) != self.card.dim:
            raise InvalidInput(f"{folder / TORCH_FOLDER}: gives {dim} dimensions, but its card says {self.card.dim}")

    def pooled(self, ids_BT: NDArray[np.int64], mask_BT: NDArray[np.int64]) -> Vectors:
        import torch

        with torch.inference_mode():
            ids, mask = (torch.from_numpy(array).to(self._model.device) for array in (ids_BT, mask_BT))
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            hidden_BTD: Vectors = hidden.float().cpu().numpy()
        return pool(hidden_BTD, mask_BT, self.card.pooling)
