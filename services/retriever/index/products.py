"""Matrix products of queries and passages, block by block, and the best of each query: exact search for many queries.

    block of vectors ──▶ (16 -> 32 bits) ──▶ x queries ──▶ scores ──▶ the best of every 64 rows

ONNX Runtime multiplies: its kernels for a tall matrix and a narrow one are several times as fast as those that faiss
calls. After the first blocks, a passage that is among the best so far is rare, so almost all are dismissed by the best
of their 64 rows, and no list is sorted.
"""

# Q = queries, K = results per query, N = passages, D = dimensions
import os

import numpy as np

from services.retriever.encoders.protocol import Vectors
from services.retriever.index.protocol import Matrix, Rows, Scores

BLOCK_ROWS = 16_384
"""Rows that are multiplied at once: enough to keep the cores busy, few enough for the scores to stay in the cache."""
GROUP_ROWS = 64
_PART_QUERIES = 32
"""Queries that a block is multiplied with at once, at most. Twice as many take longer than two such parts: the kernel
passes over their scores several times, and so many leave the nearer caches."""


class Products:
    """For vectors of one number of dimensions and one type. One caller at a time."""

    def __init__(self, dim: int, dtype: str, *, num_threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(_graph(dim, dtype), options, providers=["CPUExecutionProvider"])

    def search(self, queries_QD: Vectors, vectors_ND: Matrix, k: int) -> tuple[Scores, Rows]:
        """scores_QK and rows_QK, best first; equal scores in the order of the rows. There are at least `k` rows."""
        parts_QD = np.array_split(queries_QD, -(-len(queries_QD) // _PART_QUERIES))
        parts = [(np.ascontiguousarray(part_QD.T), _Best(len(part_QD), k)) for part_QD in parts_QD]
        whole = len(vectors_ND) - len(vectors_ND) % GROUP_ROWS
        for start in range(0, whole, BLOCK_ROWS):
            block_BD = vectors_ND[start : min(start + BLOCK_ROWS, whole)]
            for queries_DQ, best in parts:
                scores_BQ, tops_GQ = self._session.run(None, {"vectors": block_BD, "queries": queries_DQ})
                best.add(scores_BQ, tops_GQ, first_row=start)
        if whole < len(vectors_ND):
            rest_BD = np.asarray(vectors_ND[whole:], dtype=np.float32)
            for queries_DQ, best in parts:
                rest_BQ = rest_BD @ queries_DQ
                best.add(rest_BQ, rest_BQ.max(axis=0, keepdims=True), first_row=whole)
        bests = [best for _, best in parts]
        return np.concatenate([best.scores_QK for best in bests]), np.concatenate([best.rows_QK for best in bests])


def exact(queries_QD: Vectors, vectors_ND: Matrix, k: int) -> tuple[Scores, Rows]:
    """`Products.search`, once."""
    products = Products(vectors_ND.shape[1], vectors_ND.dtype.name, num_threads=len(os.sched_getaffinity(0)))
    return products.search(queries_QD, vectors_ND, k)


class _Best:
    """The best so far, of every query."""

    def __init__(self, num_queries: int, k: int) -> None:
        self._k = k
        self.scores_QK = np.empty((num_queries, 0), dtype=np.float32)
        self.rows_QK = np.empty((num_queries, 0), dtype=np.int64)

    def add(self, scores_BQ: Scores, tops_GQ: Scores, *, first_row: int) -> None:
        if self.scores_QK.shape[1] < self._k:
            rows_QB = np.broadcast_to(np.arange(first_row, first_row + len(scores_BQ)), scores_BQ.T.shape)
            self._keep_best(slice(None), scores_BQ.T, rows_QB)
            return
        worst_Q = self.scores_QK[:, -1]
        groups, queries = np.nonzero(tops_GQ > worst_Q)
        for q in np.unique(queries).tolist():
            rows = (groups[queries == q][:, None] * GROUP_ROWS + np.arange(GROUP_ROWS)).ravel()
            rows = rows[rows < len(scores_BQ)]
            rows = rows[scores_BQ[rows, q] > worst_Q[q]]
            self._keep_best(slice(q, q + 1), scores_BQ[rows, q][None], (rows + first_row)[None])

    def _keep_best(self, queries: slice, scores_QB: Scores, rows_QB: Rows) -> None:
        if scores_QB.shape[1] > self._k:  # fewer to sort; where scores are equal at the limit, all of them stay
            limit_Q1 = np.partition(scores_QB, -self._k, axis=1)[:, -self._k, None]
            kept = (scores_QB >= limit_Q1).any(axis=0)
            scores_QB, rows_QB = scores_QB[:, kept], rows_QB[:, kept]
        scores_QC = np.concatenate([self.scores_QK[queries], scores_QB], axis=1)
        rows_QC = np.concatenate([self.rows_QK[queries], rows_QB], axis=1)
        order_QK = np.argsort(-scores_QC, axis=1, kind="stable")[:, : self._k]  # rows come in order, and stay so
        scores_QK = np.take_along_axis(scores_QC, order_QK, axis=1)
        rows_QK = np.take_along_axis(rows_QC, order_QK, axis=1)
        if self.scores_QK.shape[1] == scores_QK.shape[1]:
            self.scores_QK[queries], self.rows_QK[queries] = scores_QK, rows_QK
        else:
            self.scores_QK, self.rows_QK = scores_QK, rows_QK


def _graph(dim: int, dtype: str) -> bytes:
    """vectors, queries -> scores, and the best of every GROUP_ROWS rows."""
    from onnx import TensorProto, helper, numpy_helper

    stored = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[dtype]
    inputs = [
        helper.make_tensor_value_info("vectors", stored, ["B", dim]),
        helper.make_tensor_value_info("queries", TensorProto.FLOAT, [dim, "Q"]),
    ]
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", "Q"]),
        helper.make_tensor_value_info("tops", TensorProto.FLOAT, ["G", "Q"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([-1, GROUP_ROWS]), "groups"),
        numpy_helper.from_array(np.array([1]), "rows_axis"),
    ]
    nodes = [
        helper.make_node("Cast", ["vectors"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["wide", "queries"], ["scores"]),
        helper.make_node("Shape", ["scores"], ["num_queries"], start=1),
        helper.make_node("Concat", ["groups", "num_queries"], ["grouped_shape"], axis=0),
        helper.make_node("Reshape", ["scores", "grouped_shape"], ["grouped"]),
        helper.make_node("ReduceMax", ["grouped", "rows_axis"], ["tops"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "products", inputs, outputs, constants)
    model: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    ).SerializeToString()
    return model
