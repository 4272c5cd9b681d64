"""The two files that encoders and rerankers consist of: a tokenizer, and a model for ONNX Runtime."""

# B = texts of one batch; T = tokens, right-padded
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from searcher.contracts.errors import InvalidInput, SearcherError

_SPIN_MICROSECONDS = 50
"""ONNX Runtime's threads look for work so long before they sleep. It bridges the gaps between a model's operators, in
each of which being woken costs; a short query takes a third longer without. The runtime's own default, milliseconds,
takes the cores from the search that follows and from neighbours."""
_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


def open_tokenizer(path: Path) -> Any:
    """Without padding. Raises InvalidInput for a file that is none."""
    from tokenizers import Tokenizer

    with told_in_a_line(f"{path}: cannot be read"):
        tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    return tokenizer


class OnnxModel:
    """`input_ids`, `attention_mask` and, where it has them, `token_type_ids` -> its first output.

    Raises InvalidInput for a file that is damaged, or a model that wants something else.
    """

    def __init__(self, path: Path, *, num_threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))
        with told_in_a_line(f"{path}: cannot be read"):
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = [given.name for given in self._session.get_inputs()]
        if unknown := sorted(set(self._inputs) - _INPUTS):
            raise InvalidInput(f"{path}: wants {', '.join(unknown)}; what can be given is {', '.join(sorted(_INPUTS))}")
        first = self._session.get_outputs()[0]
        self._outputs = [first.name]
        self.output_shape: tuple[int | str | None, ...] = tuple(first.shape)
        """A name, or None, where any size may be."""

    def __call__(
        self,
        ids_BT: NDArray[np.int64],
        mask_BT: NDArray[np.int64],
        types_BT: NDArray[np.int64] | None = None,
    ) -> Any:
        """The types are 0 unless they are given: those of a first, or only, text."""
        given = {"input_ids": ids_BT, "attention_mask": mask_BT}
        if "token_type_ids" in self._inputs:
            given["token_type_ids"] = np.zeros_like(ids_BT) if types_BT is None else types_BT
        return self._session.run(self._outputs, {name: given[name] for name in self._inputs})[0]


@contextmanager
def told_in_a_line(what: str) -> Iterator[None]:
    """Each library says in its own kind of exception, and at length, that it cannot use a model. Raises InvalidInput
    that begins with `what`; a disk that fails is no model's fault."""
    try:
        yield
    except (SearcherError, OSError, ModuleNotFoundError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InvalidInput(f"{what}: {reason}") from error
