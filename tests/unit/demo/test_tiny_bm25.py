from demo.bm25 import Bm25
from demo.world import SIZES, Document, make_world

DOCUMENTS = [
    Document("0", "Halin Belard", "Halin Belard works for Pavex Group."),
    Document("1", "Pavex Group", "Pavex Group is based in Garum Grove."),
    Document("2", "Garum Grove", "Garum Grove lies in Halia Republic."),
]


def test_the_document_with_the_rarer_words_comes_first() -> None:
    found = Bm25(DOCUMENTS).search("Pavex Group based", k=3)

    assert [document.title for document in found] == ["Pavex Group", "Halin Belard"]


def test_a_query_without_a_known_word_finds_nothing() -> None:
    assert Bm25(DOCUMENTS).search("Zürich", k=3) == []


def test_no_more_than_k_documents_come_back() -> None:
    assert len(Bm25(DOCUMENTS).search("group grove halin", k=2)) == 2


def test_a_name_finds_its_own_document_in_a_held_out_world() -> None:
    world = make_world("test", SIZES["test"], seed=1)
    index = Bm25(world.documents.values())
    names = list(world.documents)[::7]

    hits = [name in [document.title for document in index.search(name, k=3)] for name in names]

    assert sum(hits) / len(hits) > 0.99
