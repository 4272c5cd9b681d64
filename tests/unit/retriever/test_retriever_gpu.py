"""Without a GPU: which rows go to which device and how the answers are joined, with CPU indexes in their place."""

import faiss
import numpy as np
import pytest

from searcher.contracts.errors import InvalidInput
from services.retriever.index import gpu
from services.retriever.index.gpu import GpuFlat, check_one_faiss, parts_of
from services.retriever.index.protocol import Matrix

VECTORS = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(device, rows) of every part that was put on one."""
    put: list[tuple[int, int]] = []

    def on_cpu(vectors: Matrix, device: int) -> tuple[None, faiss.Index]:
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.asarray(vectors, dtype=np.float32))
        put.append((device, len(vectors)))
        return None, index

    monkeypatch.setattr(gpu, "filled", on_cpu)
    return put


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_several_gpus_share_the_rows_and_answer_as_one(devices: list[tuple[int, int]], dtype: str) -> None:
    vectors = VECTORS.astype(dtype)

    scores, rows = GpuFlat(vectors, num_gpus=3).search(VECTORS[:4], 5)

    products = VECTORS[:4] @ vectors.astype(np.float32).T
    expected = np.argsort(-products, axis=1)[:, :5]
    assert rows.tolist() == expected.tolist()
    assert scores == pytest.approx(np.take_along_axis(products, expected, axis=1), abs=1e-5)
    assert devices == [(0, 33), (1, 33), (2, 34)]


def test_more_results_than_a_share_holds_come_from_all(devices: list[tuple[int, int]]) -> None:
    _, rows = GpuFlat(VECTORS[:6], num_gpus=3).search(VECTORS[:1], 50)

    assert sorted(rows[0].tolist()) == [0, 1, 2, 3, 4, 5]


def test_fewer_rows_than_gpus_leave_some_idle(devices: list[tuple[int, int]]) -> None:
    _, rows = GpuFlat(VECTORS[:2], num_gpus=3).search(VECTORS[:1], 5)

    assert sorted(rows[0].tolist()) == [0, 1]
    assert len(devices) == 2


def test_only_vectors_that_must_be_converted_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_CONVERTED_BYTES", 40 * 8 * 4)

    assert parts_of(10, 100, VECTORS) == [(10, 100)]
    assert parts_of(10, 100, VECTORS.astype(np.float16)) == [(10, 50), (50, 90), (90, 100)]


def test_two_packages_of_faiss_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"faiss-cpu": "1.15.1", "faiss-gpu": "1.15.1"}
    monkeypatch.setattr(gpu, "_version", installed.get)

    with pytest.raises(InvalidInput, match=r"faiss-cpu 1\.15\.1 and faiss-gpu 1\.15\.1 are installed, and only one"):
        check_one_faiss()


@pytest.mark.parametrize("package", ["faiss-cpu", "faiss-gpu"])
def test_one_package_of_faiss_is_fine(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(gpu, "_version", {package: "1.15.1"}.get)

    check_one_faiss()
