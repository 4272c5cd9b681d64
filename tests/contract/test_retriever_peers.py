"""Other projects' clients against the real service on a real socket.

Each client is what its project's does with a response, in our words: the request it sends, the fields it reads, the
statuses it survives. They are blocking, and know nothing of tokens or of us.
"""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from searcher.servicekit.settings import SharedSettings
from services.retriever.app import create_app
from services.retriever.building.build import build_index
from services.retriever.settings import RetrieverSettings

PASSAGES = (
    {"id": "11", "title": "Rome", "text": "Rome is the capital\nof Italy.", "url": "http://wiki/Rome"},
    {"id": "12", "title": '1984 "film"', "text": "A film after a book by Orwell."},
    {"id": "x-13", "title": "", "text": "Orwell wrote a book. 東京"},
    {"id": "14", "title": "Rome", "text": "It has seven hills.", "url": "http://wiki/Rome"},
)


@pytest.fixture(scope="module")
def index_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers")
    source = folder / "world.jsonl"
    source.write_text("".join(json.dumps(passage) + "\n" for passage in PASSAGES))
    build_index(source, folder / "world", kind="bm25")
    return folder / "world"


class Server(uvicorn.Server):
    """In a thread of its own, on a port that was free."""

    def __init__(self, settings: RetrieverSettings) -> None:
        super().__init__(uvicorn.Config(create_app(settings), log_level="warning", access_log=False))
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.run, args=([self.socket],))

    def __enter__(self) -> str:
        self.thread.start()
        while not self.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        return f"127.0.0.1:{self.socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self.should_exit = True
        self.thread.join()
        self.socket.close()


@pytest.fixture(scope="module")
def server(index_dir: Path) -> Iterator[str]:
    with Server(RetrieverSettings(index_dir=index_dir)) as address:
        yield address


def post(url: str, payload: dict[str, Any], *, timeout: float | None = 30.0, headers: Any = None) -> httpx.Response:
    """As `requests.post(url, json=payload)` sends it."""
    headers = {"Content-Type": "application/json", **(headers or {})}
    return httpx.post(url, content=json.dumps(payload), headers=headers, timeout=timeout, trust_env=False)


# ---------------------------------------------------------------------------------------------------------------------
# R1-Searcher


def r1_searcher(address: str, queries: list[str], k: int = 3) -> list[str]:
    """The training loop's document block per query. Any status but 200 ends the training."""
    response = post(f"http://{address}/queries", {"queries": queries, "k": k}, timeout=None)
    assert response.status_code == 200
    blocks = []
    for answers in response.json()["answers"]:
        texts = [re.sub(r"^\d+\s+", "", answer) for answer in answers]
        blocks.append("".join(f"({number}){text}\n" for number, text in enumerate(texts, start=1)) or "None")
    return blocks


def test_r1_searcher_gets_its_documents(server: str) -> None:
    assert r1_searcher(server, ["Rome hills", "book Orwell", "zyzzyva", ""], k=2) == [
        "(1)Title: Rome Text:  It has seven hills.\n(2)Title: Rome Text:  Rome is the capital of Italy.\n",
        '(1)Orwell wrote a book. 東京\n(2)Title: 1984 "film" Text:  A film after a book by Orwell.\n',
        "None",
        "None",
    ]


def test_r1_searchers_titles_keep_their_numbers(server: str) -> None:
    (block,) = r1_searcher(server, ["film"])

    assert block.startswith('(1)Title: 1984 "film" Text:')


# ---------------------------------------------------------------------------------------------------------------------
# Search-R1, verl, SkyRL


def search_r1(address: str, queries: list[str], topk: int = 3) -> list[str]:
    """What its generation loop shows the policy, per query. It looks at no status."""
    payload = {"queries": queries, "topk": topk, "return_scores": True}
    texts = []
    for found in post(f"http://{address}/retrieve", payload, timeout=None).json()["result"]:
        text = ""
        for number, item in enumerate(found, start=1):
            title, _, rest = item["document"]["contents"].partition("\n")
            text += f"Doc {number}(Title: {title}) {rest}\n"
        texts.append(text)
    return texts


def test_search_r1_gets_its_documents(server: str) -> None:
    assert search_r1(server, ["capital", "film"]) == [
        'Doc 1(Title: "Rome") Rome is the capital\nof Italy.\n',
        'Doc 1(Title: "1984 "film"") A film after a book by Orwell.\n',
    ]


def test_search_r1_goes_on_after_a_turn_in_which_nobody_searched(server: str) -> None:
    assert search_r1(server, []) == []


def patient_call(url: str, payload: dict[str, Any], *, tries: int = 10) -> dict[str, Any]:
    """verl's and SkyRL's: 500, 502, 503 and 504 are tried again, any other error is the end."""
    for _ in range(tries):
        response = post(url, payload, headers={"Accept": "application/json"})
        if response.status_code in (500, 502, 503, 504):
            continue
        response.raise_for_status()
        body: dict[str, Any] = response.json()
        return body
    raise AssertionError(f"gave up after {tries} tries")


def verl(address: str, queries: list[str], topk: int = 3) -> tuple[str, int]:
    """The tool's result, and how many documents it holds."""
    body = patient_call(f"http://{address}/retrieve", {"queries": queries, "topk": topk, "return_scores": True})
    pretty, total = [], 0
    for found in body.get("result", []):
        text = ""
        for number, item in enumerate(found, start=1):
            title, _, rest = item["document"]["contents"].partition("\n")
            text += f"Doc {number} (Title: {title})\n{rest}\n\n"
        pretty.append(text.strip())
        total += len(found)
    return "\n---\n".join(pretty), total


def test_verl_gets_its_tool_result(server: str) -> None:
    assert verl(server, ["capital", "film"]) == (
        'Doc 1 (Title: "Rome")\nRome is the capital\nof Italy.\n---\n'
        'Doc 1 (Title: "1984 "film"")\nA film after a book by Orwell.',
        2,
    )


def skyrl(address: str, query: str, topk: int = 3, *, singular: bool) -> str:
    """Its server's own form is `query`, its agents send `queries` of one."""
    asked = {"query": query} if singular else {"queries": [query.strip()]}
    body = patient_call(f"http://{address}/retrieve", {**asked, "topk": topk, "return_scores": True})
    return "\n---\n".join(
        "".join(f"Doc {number}: {item['document']['contents'].strip()}\n" for number, item in enumerate(found, start=1))
        for found in body["result"]
    )


@pytest.mark.parametrize(
    "line", ["Title: Lucy Mair Text:  Lucy was here.  She left.", "Lucy Mair   Lucy was here. She left."]
)
def test_r1_searcher_gets_the_lines_of_its_own_files(tmp_path: Path, line: str) -> None:
    (tmp_path / "passages.tsv").write_text(f"7\t{line}\n8\t{line.replace('Lucy', 'Rome')}\n")
    build_index(tmp_path / "passages.tsv", tmp_path / "own", kind="bm25")

    with Server(RetrieverSettings(index_dir=tmp_path / "own")) as address:
        answer = post(f"http://{address}/queries", {"queries": ["Lucy"], "k": 1}).json()

    assert answer["answers"] == [[f"7\t{line}"]]


@pytest.mark.parametrize("singular", [True, False])
def test_skyrl_gets_its_documents(server: str, singular: bool) -> None:
    assert skyrl(server, "capital", singular=singular) == 'Doc 1: "Rome"\nRome is the capital\nof Italy.\n'


@pytest.mark.parametrize("queries", [["capital"], ["capital", "film"], ["capital", "film", "zyzzyva"]])
def test_without_scores_documents_come_bare_for_any_number_of_queries(server: str, queries: list[str]) -> None:
    body = post(f"http://{server}/retrieve", {"queries": queries, "topk": 1, "return_scores": False}).json()

    found = {
        "capital": [{"id": "11", "contents": '"Rome"\nRome is the capital\nof Italy.', "url": "http://wiki/Rome"}],
        "film": [{"id": "12", "contents": '"1984 "film""\nA film after a book by Orwell.', "url": ""}],
        "zyzzyva": [],
    }
    assert body == {"result": [found[query] for query in queries]}


# ---------------------------------------------------------------------------------------------------------------------
# ASearcher


def asearcher_query(address: str, queries: list[str], topk: int = 10) -> list[dict[str, list[str]]]:
    response = post(f"http://{address}/retrieve", {"queries": queries, "topk": topk, "return_scores": False})
    response.raise_for_status()
    return [
        {"documents": [item["contents"] for item in found], "urls": [item["url"] for item in found]}
        for found in response.json()["result"]
    ]


def asearcher_access(address: str, urls: list[str]) -> list[str | None]:
    response = post(f"http://{address}/access", {"urls": urls})
    response.raise_for_status()
    return [None if page is None else page["contents"] for page in response.json()["result"]]


def test_asearcher_gets_documents_with_addresses(server: str) -> None:
    assert asearcher_query(server, ["capital", "Orwell film"], topk=1) == [
        {"documents": ['"Rome"\nRome is the capital\nof Italy.'], "urls": ["http://wiki/Rome"]},
        {"documents": ['"1984 "film""\nA film after a book by Orwell.'], "urls": [""]},
    ]


def test_asearcher_opens_pages(server: str) -> None:
    assert asearcher_access(server, ["http://wiki/Rome", "http://wiki/Nowhere"]) == [
        "Rome is the capital\nof Italy.\nIt has seven hills.",
        None,
    ]


# ---------------------------------------------------------------------------------------------------------------------
# ReCall, SearchAgentReview


def recall(address: str, query: str, top_n: int = 5) -> str:
    """The search function of its environment: documents without scores."""
    response = post(f"http://{address}/search", {"query": query, "top_n": top_n})
    return "\n".join(f"{line['contents']}\n" for line in response.json()).strip()


def recall_batch(address: str, queries: list[str], top_n: int = 5) -> list[str]:
    response = post(f"http://{address}/batch_search", {"query": queries, "top_n": top_n})
    return ["\n".join(f"{line['contents']}\n" for line in found).strip() for found in response.json()]


def test_recall_gets_its_documents(server: str) -> None:
    assert recall(server, "capital") == '"Rome"\nRome is the capital\nof Italy.'
    assert recall_batch(server, ["capital", "zyzzyva"]) == ['"Rome"\nRome is the capital\nof Italy.', ""]


def test_recalls_scores_come_beside_the_documents(server: str) -> None:
    documents, scores = post(f"http://{server}/search", {"query": "Rome hills", "return_score": True}).json()
    documents_Q, scores_Q = post(
        f"http://{server}/batch_search", {"query": ["Rome hills", "zyzzyva"], "return_score": True}
    ).json()

    assert documents == [
        {"id": "14", "contents": '"Rome"\nIt has seven hills.'},
        {"id": "11", "contents": '"Rome"\nRome is the capital\nof Italy.'},
    ]
    assert scores[0] > scores[1] > 0
    assert (documents_Q, scores_Q) == ([documents, []], [scores, []])


def test_recall_waits_for_a_healthy_server(server: str) -> None:
    body = httpx.get(f"http://{server}/health", trust_env=False).json()

    assert body["status"] == "healthy"
    assert body["retrievers"]["available"] == 1


def search_agent_review(address: str, queries: list[str], k: int | list[int]) -> list[list[tuple[str, str, str]]]:
    """Id, title and text per hit. 4xx are not tried again."""
    body = patient_call(f"http://{address}/search", {"query_list": queries, "k": k, "return_scores": True}, tries=3)
    return [
        [(item["document"]["id"], item["document"]["title"], item["document"]["contents"]) for item in found]
        for found in body["result"]
    ]


def test_search_agent_review_asks_the_same_route_in_its_own_way(server: str) -> None:
    rome = ("11", "Rome", "Rome\nRome is the capital\nof Italy.")
    hills = ("14", "Rome", "Rome\nIt has seven hills.")

    assert search_agent_review(server, ["Rome hills", "capital"], 2) == [[hills, rome], [rome]]
    assert search_agent_review(server, ["Rome hills", "Rome hills"], [2, 1]) == [[hills, rome], [hills]]


def test_a_k_for_each_query_must_be_for_each(server: str) -> None:
    response = post(f"http://{server}/search", {"query_list": ["a", "b", "c"], "k": [1, 2]})

    assert response.status_code == 422
    assert response.json()["detail"].startswith("body.k: 2 numbers for 3 queries")


def test_long_passages_are_cut_where_search_agent_reviews_server_cuts_them(tmp_path: Path) -> None:
    source = tmp_path / "long.jsonl"
    source.write_text(json.dumps({"id": "1", "title": "Long", "text": "word " * 2_000}))
    build_index(source, tmp_path / "long", kind="bm25")

    with Server(RetrieverSettings(index_dir=tmp_path / "long")) as address:
        (((_, _, contents),),) = search_agent_review(address, ["word"], 1)

    assert len(contents) == 4_096


# ---------------------------------------------------------------------------------------------------------------------
# All of them


@pytest.mark.parametrize(
    ("path", "payload", "answer"),
    [
        ("/queries", {"queries": []}, {"queries": [], "answers": []}),
        ("/retrieve", {"queries": [], "topk": 3, "return_scores": True}, {"result": []}),
        ("/retrieve", {"queries": [], "topk": 3, "return_scores": False}, {"result": []}),
        ("/access", {"urls": []}, {"result": []}),
        ("/search", {"query_list": [], "k": 3}, {"result": []}),
        ("/search", {"query_list": [], "k": [3]}, {"result": []}),
        ("/batch_search", {"query": [], "top_n": 3}, []),
        ("/batch_search", {"query": [], "top_n": 3, "return_score": True}, [[], []]),
    ],
)
def test_who_asks_nothing_gets_as_many_answers(server: str, path: str, payload: dict[str, Any], answer: object) -> None:
    response = post(f"http://{server}{path}", payload)

    assert (response.status_code, response.json()) == (200, answer)


def test_a_query_that_does_not_end_is_cut(server: str) -> None:
    """A policy may babble until its tokens end, and Search-R1's trainer does not survive an error."""
    endless = "capital " * 20_000

    assert search_r1(server, [endless, "film"]) == search_r1(server, ["capital", "film"])
    assert post(f"http://{server}/queries", {"queries": [endless]}).json()["queries"] == [endless]


def test_a_whole_batch_of_rollouts_may_ask_at_once(server: str) -> None:
    found = search_r1(server, ["capital", "film"] * 5_000)

    assert found == search_r1(server, ["capital", "film"]) * 5_000


def test_an_address_that_no_page_can_have_finds_none(server: str) -> None:
    urls = ["http://wiki/Rome", "http://wiki/" + "x" * 10_000]

    first, second = post(f"http://{server}/access", {"urls": urls}).json()["result"]

    assert (first["url"], second) == (urls[0], None)


@pytest.mark.parametrize(
    ("path", "payload", "field"),
    [
        ("/queries", {"k": 3}, "body.queries: Field required"),
        ("/queries", {"queries": ["x"] * 16_385}, "body.queries: "),
        ("/queries", {"queries": ["x"], "k": 101}, "body.k: "),
        ("/retrieve", {"topk": 3}, "body.queries: Field required"),
        ("/retrieve", {"queries": ["x", 7]}, "body.queries.1: "),
        ("/retrieve", {"queries": ["x"], "topk": "many"}, "body.topk: "),
        ("/access", {"urls": 7}, "body.urls: "),
        ("/batch_search", {"query": ["x"], "top_n": 0}, "body.top_n: "),
        ("/search", {}, "body.query_list: Field required"),
        ("/search", {"query_list": ["x"], "k": [0]}, "body.k."),
        ("/retrieve?corpus=a%20b", {"query": "x"}, "query.corpus: 'a b'"),
        ("/queries", {"queries": ["x"], "k": True}, "body.k: "),
        ("/retrieve", {"queries": ["x"], "topk": "3"}, "body.topk: "),
        ("/retrieve", {"queries": ["x"], "return_scores": "yes"}, "body.return_scores: "),
        ("/search", {"query": 7}, "body.query: "),
        ("/search", {"query": "x", "top_n": 3.0}, "body.top_n: "),
        ("/search", {"query_list": ["x"], "return_scores": 1}, "body.return_scores: "),
    ],
)
def test_what_no_client_sends_is_refused_by_its_field(
    server: str, path: str, payload: dict[str, Any], field: str
) -> None:
    response = post(f"http://{server}{path}", payload)

    assert (response.status_code, response.json()["error"]) == (422, "InvalidInput")
    assert response.json()["detail"].startswith(field)


@pytest.mark.parametrize("depth", [600, 100_000])
@pytest.mark.parametrize("path", ["/queries", "/retrieve", "/access", "/search", "/batch_search"])
def test_what_is_nested_too_deeply_is_refused(server: str, path: str, depth: int) -> None:
    body = f'{{"queries": ["song"], "x": {"[" * depth}{"]" * depth}}}'
    response = httpx.post(f"http://{server}{path}", content=body, timeout=30)

    assert (response.status_code, response.json()["detail"]) == (
        422,
        "body: lists and objects are nested too deeply",
    )


def test_broken_text_of_a_policy_is_mended(server: str) -> None:
    """Half a surrogate pair is valid JSON and no text. Their clients send what the policy wrote."""
    assert search_r1(server, ["capital \ud83d"]) == ['Doc 1(Title: "Rome") Rome is the capital\nof Italy.\n']


def test_a_corpus_may_be_named_in_the_address(server: str) -> None:
    known = post(f"http://{server}/retrieve?corpus=default", {"query": "Rome"})
    unknown = post(f"http://{server}/queries?corpus=moon", {"queries": ["Rome"]})

    assert (known.status_code, unknown.status_code) == (200, 404)
    assert "'moon' is not one of default" in unknown.json()["detail"]


def test_a_client_that_knows_no_tokens_sends_one_in_its_address(index_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    settings = RetrieverSettings(index_dir=index_dir, shared=SharedSettings(api_key_file=tmp_path / "key"))

    with Server(settings) as address:
        assert post(f"http://{address}/queries", {"queries": ["Rome"]}).status_code == 401
        assert post(f"http://any:wrong@{address}/queries", {"queries": ["Rome"]}).status_code == 401
        (block,) = r1_searcher(f"any:secret@{address}", ["capital"])

    assert block == "(1)Title: Rome Text:  Rome is the capital of Italy.\n"
