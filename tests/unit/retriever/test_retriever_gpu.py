"""No GPU here: what is tested is how a GPU index is filled and asked, with a CPU index in its place."""

import faiss
import numpy as np
import pytest

from searcher.contracts.errors import InvalidInput
from services.retriever import gpu
from services.retriever.gpu import GpuFlat, check_one_faiss, fill
from services.retriever.nearest import Matrix

VECTORS = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)


class Filled:
    def __init__(self) -> None:
        self.added: list[np.ndarray] = []

    def add(self, block: np.ndarray) -> None:
        self.added.append(block)


def test_a_matrix_is_added_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_PAGE_BYTES", 40 * 8 * 4)
    index = Filled()

    fill(index, VECTORS.astype(np.float16))

    assert [len(block) for block in index.added] == [40, 40, 20]
    assert np.concatenate(index.added).tolist() == VECTORS.astype(np.float16).astype(np.float32).tolist()


def test_several_gpus_share_the_rows_and_answer_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_cpu(vectors: Matrix, device: int) -> tuple[None, faiss.Index]:
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.asarray(vectors, dtype=np.float32))
        return None, index

    monkeypatch.setattr(gpu, "_filled", on_cpu)

    scores, rows = GpuFlat(VECTORS, num_gpus=3).search(VECTORS[:4], 5)

    expected = np.argsort(-(VECTORS[:4] @ VECTORS.T), axis=1)[:, :5]
    assert rows.tolist() == expected.tolist()
    assert scores == pytest.approx(np.take_along_axis(VECTORS[:4] @ VECTORS.T, expected, axis=1), abs=1e-5)


def test_more_results_than_a_share_holds_come_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_cpu(vectors: Matrix, device: int) -> tuple[None, faiss.Index]:
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.asarray(vectors, dtype=np.float32))
        return None, index

    monkeypatch.setattr(gpu, "_filled", on_cpu)

    _, rows = GpuFlat(VECTORS[:6], num_gpus=3).search(VECTORS[:1], 50)

    assert sorted(rows[0].tolist()) == [0, 1, 2, 3, 4, 5]


def test_two_packages_of_faiss_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"faiss-cpu": "1.15.1", "faiss-gpu": "1.15.1"}
    monkeypatch.setattr(gpu, "_version", installed.get)

    with pytest.raises(InvalidInput, match=r"faiss-cpu 1\.15\.1 and faiss-gpu 1\.15\.1 are installed, and only one"):
        check_one_faiss()


@pytest.mark.parametrize("package", ["faiss-cpu", "faiss-gpu"])
def test_one_package_of_faiss_is_fine(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(gpu, "_version", {package: "1.15.1"}.get)

    check_one_faiss()
