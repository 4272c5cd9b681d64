"""Indexes replaced while they are searched. Real indexes of four passages; where a search must last, it is held."""

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from prometheus_client.samples import Sample

from searcher.contracts.errors import Conflict, InvalidInput, NotFound, NotReady, Overloaded
from services.retriever import metrics
from services.retriever.backend import Ask
from services.retriever.building.build import build_index
from services.retriever.index.manifest import manifest_sha256
from services.retriever.index.protocol import Index, Rows, Scores
from services.retriever.serving import pages
from services.retriever.serving.engine import Engine
from services.retriever.serving.library import Library
from services.retriever.serving.shelf import Shelf

pytestmark = pytest.mark.anyio

OLDER = ({"id": "o", "title": "Rome", "text": "the older one"},)
NEWER = ({"id": "n", "title": "Rome", "text": "the newer one"}, {"id": "m", "title": "Paris", "text": "and another"})

WriteCorpus = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path, write_corpus: WriteCorpus) -> Callable[[Sequence[dict[str, str]], str], Path]:
    def build(passages: Sequence[dict[str, str]], folder: str) -> Path:
        build_index(write_corpus(passages, f"{Path(folder).name}.jsonl"), tmp_path / folder, kind="bm25")
        return tmp_path / folder

    return build


Build = Callable[[Sequence[dict[str, str]], str], Path]


class HeldIndex:
    """Another index that does not come back before it is let go."""

    def __init__(self, index: Index, began: threading.Event, let_go: threading.Event) -> None:
        self.index, self.began, self.let_go = index, began, let_go

    def search(self, queries: Sequence[str], k: int) -> tuple[Rows, Scores]:
        self.began.set()
        assert self.let_go.wait(timeout=30)
        return self.index.search(queries, k)


class HeldLibrary(Library):
    def __init__(self) -> None:
        super().__init__(num_threads=1)
        self.began, self.let_go = threading.Event(), threading.Event()
        self.let_go.set()

    def index(self, folder: Path, facts: object) -> Index:
        return HeldIndex(super().index(folder, facts), self.began, self.let_go)


@pytest.fixture
async def library() -> AsyncIterator[HeldLibrary]:
    library = HeldLibrary()
    yield library
    library.let_go.set()


async def shelf_of(library: Library, index_dir: Path, *, watch_seconds: float = 0.0) -> Shelf:
    shelf = Shelf(library, Engine(cache_entries=100), index_dir, watch_seconds=watch_seconds)
    await shelf.start()
    return shelf


async def ids(shelf: Shelf, query: str = "Rome", corpus: str = "default") -> list[str]:
    found = await shelf.search(Ask([query], [3], corpus))
    return [json.loads(passage)["id"] for passage in found.passages_Q[0]]


async def test_another_index_is_served_and_its_answers_are_new(library: HeldLibrary, build: Build) -> None:
    shelf = await shelf_of(library, build(OLDER, "older"))
    assert await ids(shelf) == ["o"]  # and cached

    old, new = await shelf.replace("default", build(NEWER, "newer"))

    assert await ids(shelf) == ["n"]
    assert [info.index for info in shelf.corpora()] == [new.sha256] != [old.sha256]
    await shelf.close()


async def test_who_asked_before_is_answered_from_the_index_that_was_there(library: HeldLibrary, build: Build) -> None:
    shelf = await shelf_of(library, build(OLDER, "older"))
    newer = build(NEWER, "newer")
    library.began.clear()
    library.let_go.clear()
    before = asyncio.create_task(ids(shelf))
    await asyncio.to_thread(library.began.wait, 30)
    swap = asyncio.create_task(shelf.replace("default", newer))
    await asyncio.sleep(0.05)
    library.let_go.set()

    assert await before == ["o"]
    await swap
    assert await ids(shelf) == ["n"]
    await shelf.close()


async def test_the_old_index_closes_with_its_last_request(library: HeldLibrary, build: Build) -> None:
    shelf = await shelf_of(library, build(OLDER, "older"))
    old = weakref.ref(shelf.corpus("default").passages)

    await shelf.replace("default", build(NEWER, "newer"))
    await ids(shelf)
    gc.collect()

    assert old() is None
    await shelf.close()


async def test_an_index_that_is_not_sound_is_refused_and_the_older_one_goes_on(
    library: HeldLibrary, build: Build
) -> None:
    shelf = await shelf_of(library, build(OLDER, "older"))
    newer = build(NEWER, "newer")
    manifest = json.loads((newer / "manifest.json").read_text())
    manifest["golden"]["score"] *= 2
    (newer / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(InvalidInput, match="golden query"):
        await shelf.replace("default", newer)

    assert await ids(shelf) == ["o"]
    await shelf.close()


async def test_nothing_is_replaced_by_a_folder_that_is_not_there(library: HeldLibrary, build: Build) -> None:
    shelf = await shelf_of(library, build(OLDER, "older"))

    with pytest.raises(InvalidInput, match=r"nowhere/manifest\.json: no such file"):
        await shelf.replace("default", Path("nowhere"))
    with pytest.raises(NotFound, match="'moon' is not one of default"):
        await shelf.replace("moon")
    await shelf.close()


async def test_one_index_is_opened_at_a_time(library: HeldLibrary, build: Build) -> None:
    shelf = await shelf_of(library, build(OLDER, "older"))
    newer = build(NEWER, "newer")
    library.let_go.clear()
    first = asyncio.create_task(shelf.replace("default", newer))
    await asyncio.sleep(0)

    with pytest.raises(Conflict):
        await shelf.replace("default", newer)
    library.let_go.set()
    await first
    await shelf.close()


async def test_the_single_corpus_changes_under_both_of_its_names(
    library: HeldLibrary, build: Build, tmp_path: Path
) -> None:
    build(OLDER, "indexes/world")
    shelf = await shelf_of(library, tmp_path / "indexes")

    await shelf.replace("default", build(NEWER, "newer"))

    assert (await ids(shelf), await ids(shelf, corpus="world")) == (["n"], ["n"])
    await shelf.close()


def swaps(outcome: str) -> float:
    return metrics.SWAPS.labels(outcome)._value.get()


def passages_shown() -> list[Sample]:
    (family,) = metrics.INDEX_PASSAGES.collect()
    return [sample for sample in family.samples if sample.labels["corpus"] == "default"]


def no_memory(*_: object) -> Index:
    raise RuntimeError("out of memory on GPU 0")


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not what():  # noqa: ASYNC110 (nobody tells us)
            await asyncio.sleep(0.01)


async def test_a_current_link_that_leads_elsewhere_is_followed(
    library: HeldLibrary, build: Build, tmp_path: Path
) -> None:
    build(OLDER, "world/first")
    build(NEWER, "world/second")
    link = tmp_path / "world" / "current"
    link.symlink_to("first")
    shelf = await shelf_of(library, tmp_path / "world", watch_seconds=0.01)
    first = shelf.corpus("default").sha256

    (tmp_path / "world" / "next").symlink_to("second")
    (tmp_path / "world" / "next").rename(link)

    await until(lambda: shelf.corpus("default").sha256 != first)
    assert await ids(shelf) == ["n"]
    await shelf.close()


async def test_a_link_that_moves_on_while_an_index_is_opened_is_followed_to_the_end(
    library: HeldLibrary, build: Build, tmp_path: Path
) -> None:
    build(OLDER, "world/first")
    build(NEWER, "world/second")
    build(({"id": "l", "title": "Rome", "text": "the last one"},), "world/third")
    link = tmp_path / "world" / "current"
    link.symlink_to("first")
    shelf = await shelf_of(library, tmp_path / "world", watch_seconds=0.01)
    library.began.clear()
    library.let_go.clear()

    for place in ("second", "third"):
        (tmp_path / "world" / "next").symlink_to(place)
        (tmp_path / "world" / "next").rename(link)
        await asyncio.to_thread(library.began.wait, 30)  # the second is being tried
    library.let_go.set()

    await until(lambda: shelf.corpora()[0].index == manifest_sha256(tmp_path / "world" / "third"))
    assert await ids(shelf) == ["l"]
    await shelf.close()


@pytest.mark.parametrize("folder", ["/dev/null", "a\0b", "x" * 300])
async def test_what_can_be_no_folder_is_refused(library: HeldLibrary, build: Build, folder: str) -> None:
    shelf = await shelf_of(library, build(OLDER, "older"))
    with pytest.raises(InvalidInput):
        await shelf.replace("default", Path(folder))
    assert await ids(shelf) == ["o"]
    await shelf.close()


async def test_an_index_built_anew_in_its_place_is_noticed(library: HeldLibrary, build: Build) -> None:
    folder = build(OLDER, "world")
    shelf = await shelf_of(library, folder, watch_seconds=0.01)
    first = shelf.corpus("default").sha256

    build(NEWER, "world")

    await until(lambda: shelf.corpus("default").sha256 != first)
    assert await ids(shelf) == ["n"]
    await shelf.close()


async def test_an_index_that_is_still_being_copied_is_waited_for(
    library: HeldLibrary, build: Build, tmp_path: Path
) -> None:
    build(OLDER, "world/first")
    second = build(NEWER, "world/second")
    passages = (second / "passages.jsonl").read_bytes()
    (second / "passages.jsonl").write_bytes(passages[:10])
    (tmp_path / "world" / "current").symlink_to("first")
    refused = swaps("refused")
    shelf = await shelf_of(library, tmp_path / "world", watch_seconds=0.01)

    (tmp_path / "world" / "next").symlink_to("second")
    (tmp_path / "world" / "next").rename(tmp_path / "world" / "current")
    await until(lambda: swaps("refused") > refused)
    assert await ids(shelf) == ["o"]
    (second / "passages.jsonl").write_bytes(passages)

    await until(lambda: shelf.corpora()[0].index == manifest_sha256(second))
    assert await ids(shelf) == ["n"]
    await shelf.close()


async def test_what_opening_an_index_may_raise_does_not_end_the_watch(
    library: HeldLibrary, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build(OLDER, "world")
    shelf = await shelf_of(library, folder, watch_seconds=0.01)
    refused = swaps("refused")

    with monkeypatch.context() as patch:
        patch.setattr(library, "index", no_memory)
        build(NEWER, "world")
        await until(lambda: swaps("refused") > refused)
        with pytest.raises(InvalidInput, match=r"world' cannot be served: RuntimeError: out of memory on GPU 0"):
            await shelf.replace("default")
    build(({"id": "l", "title": "Rome", "text": "the last one"},), "world")

    await until(lambda: shelf.corpora()[0].index == manifest_sha256(folder))
    assert await ids(shelf) == ["l"]
    await shelf.close()


async def test_the_size_of_an_index_that_was_replaced_is_no_longer_shown(
    library: HeldLibrary, tmp_path: Path, write_corpus: WriteCorpus, letter_encoder: Callable[..., Path]
) -> None:
    build_index(write_corpus(OLDER, "older.jsonl"), tmp_path / "older", kind="bm25")
    build_index(write_corpus(NEWER, "newer.jsonl"), tmp_path / "newer", kind="flat", encoder=str(letter_encoder()))
    metrics.INDEX_PASSAGES.clear()  # of other tests
    shelf = await shelf_of(library, tmp_path / "older")

    await shelf.replace("default", tmp_path / "newer")

    assert [sample.labels | {"value": sample.value} for sample in passages_shown()] == [
        {"corpus": "default", "kind": "flat", "value": 2}
    ]
    await shelf.close()


async def test_a_shelf_is_ready_by_its_golden_query(library: HeldLibrary, build: Build) -> None:
    shelf = await shelf_of(library, build(OLDER, "older"))
    library.began.clear()

    await shelf.check()

    assert library.began.is_set()
    await shelf.close()
    with pytest.raises(NotReady):
        await shelf.check()


PAGES = (
    {"id": "1", "title": "Rome", "text": "Rome begins.", "url": "http://rome"},
    {"id": "2", "title": "Paris", "text": "Paris.", "url": "http://paris"},
    {"id": "3", "title": "Rome", "text": "Rome goes on.", "url": "http://rome"},
)


async def test_the_pages_of_a_corpus_with_addresses_are_whole(library: HeldLibrary, build: Build) -> None:
    shelf = await shelf_of(library, build(PAGES, "pages"))

    rome, nothing, paris = await shelf.pages(["http://rome", "http://nowhere", "http://paris"], "default")

    assert rome is not None
    assert paris is not None
    assert json.loads(rome)["text"] == "Rome begins.\nRome goes on."
    assert json.loads(paris)["id"] == "2"
    assert nothing is None
    await shelf.close()


async def test_addresses_that_take_longer_to_read_than_a_caller_waits_are_an_overload(
    library: HeldLibrary, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, read = threading.Event(), pages._table
    monkeypatch.setattr(pages, "_table", lambda passages: go_on.wait(10) and read(passages))
    shelf = await shelf_of(library, build(PAGES, "pages"))

    with pytest.raises(Overloaded, match=r"not read within 0\.05 s"):
        await shelf.pages(["http://rome"], "default", deadline_seconds=0.05)
    go_on.set()

    (rome,) = await shelf.pages(["http://rome"], "default")
    assert rome is not None
    await shelf.close()
