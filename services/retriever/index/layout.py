"""Names of what lies in an index folder; which kind of index has what, says `manifest`."""

PASSAGES_FILE, OFFSETS_FILE = "passages.jsonl", "offsets.npy"
BM25_FOLDER = "bm25"
BM25_FILES = (
    "data.csc.index.npy",
    "indices.csc.index.npy",
    "indptr.csc.index.npy",
    "params.index.json",
    "vocab.index.json",
)
VECTORS_FILE, HALF_VECTORS_FILE, CODES_FOLDER = "vectors.npy", "vectors.fp16.faiss", "codes"
ENCODER_FOLDER, RERANKER_FOLDER, RERANKER_CARD_FILE = "encoder", "reranker", "reranker.json"
INDEX_NAMES = frozenset(
    {
        PASSAGES_FILE,
        OFFSETS_FILE,
        BM25_FOLDER,
        VECTORS_FILE,
        HALF_VECTORS_FILE,
        CODES_FOLDER,
        ENCODER_FOLDER,
        RERANKER_FOLDER,
    }
)


def codes_file(number: int) -> str:
    return f"{number:03}.faiss"
