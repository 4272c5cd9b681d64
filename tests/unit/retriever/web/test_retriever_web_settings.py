"""RETRIEVER_WEB_*: what is refused before the first request, and with which words."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from searcher.contracts.errors import InvalidInput, NotFound, NotReady
from services.retriever.backend import Ask
from services.retriever.settings import RetrieverSettings
from services.retriever.web.backend import WebBackend
from services.retriever.web.searcher import TextKind
from services.retriever.web.settings import WebSettings

pytestmark = pytest.mark.anyio


@pytest.fixture
def keys_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "serper").write_text("s3cret\n")
    return folder


def test_the_environment_is_read_as_the_readme_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RETRIEVER_BACKEND": "web",
        "RETRIEVER_WEB_PROVIDERS": "serper, searxng",
        "RETRIEVER_WEB_URLS": '{"searxng": "http://searxng:8080/search"}',
        "RETRIEVER_WEB_USD_PER_REQUEST": '{"serper": 0.0003, "summariser": 0.002}',
        "RETRIEVER_WEB_REQUESTS_PER_SECOND": '{"serper": 300}',
        "RETRIEVER_WEB_ALLOWED_ADDRESSES": "10.0.0.5:8080, [fd00::5]:80",
        "RETRIEVER_WEB_CASSETTE": "",
        "RETRIEVER_WEB_TEXT": "page",
    }.items():
        monkeypatch.setenv(name, value)

    web = RetrieverSettings().web

    assert web.providers == ("serper", "searxng")
    assert [web.address_of(name) for name in web.providers] == [
        "https://google.serper.dev/search",
        "http://searxng:8080/search",
    ]
    assert [web.price_of("serper"), web.price_of("brave"), web.price_of("summariser")] == [0.0003, 0.005, 0.002]
    assert [web.rate_of("serper"), web.rate_of("brave")] == [300, 20]
    assert web.allowed_addresses == (("10.0.0.5", 8080), ("fd00::5", 80))
    assert (web.cassette, web.text) == (None, TextKind.PAGE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"providers": "bing"},
        {"urls": {"bing": "http://x"}},
        {"usd_per_request": {"serper": -1}},
        {"requests_per_second": {"serper": 0}},
        {"budget_usd": -1},
        {"allowed_addresses": "intranet:80"},
        {"allowed_addresses": "10.0.0.5"},
        {"site": "en.wikipedia.org OR"},
        {"language": "english"},
        {"text": "all"},
        {"cassette_mode": "rewind"},
    ],
)
def test_a_value_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WebSettings(**wrong)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"providers": ()}, "RETRIEVER_WEB_PROVIDERS: name at least one"),
        ({"providers": ("brave",), "budget_usd": 1.0}, "RETRIEVER_WEB_KEYS_DIR: no file brave in .*keys"),
        (
            {"providers": ("serper",)},
            r"RETRIEVER_WEB_BUDGET_USD: 0 does not pay .* serper \(0\.001 USD\)",
        ),
        ({"providers": ("searxng",)}, "RETRIEVER_WEB_URLS: searxng has no address"),
        ({"text": TextKind.SUMMARY}, "RETRIEVER_WEB_SUMMARISER_MODEL"),
        ({"text": TextKind.SUMMARY, "summariser_model": "m"}, "RETRIEVER_WEB_SUMMARISER_URL"),
        ({"cassette_mode": "record"}, "RETRIEVER_WEB_CASSETTE: name a folder"),
        ({"cassette_mode": "replay", "cassette": Path("nowhere")}, r"nowhere holds no cassette\.json"),
    ],
)
async def test_a_backend_that_could_not_work_does_not_start(
    keys_dir: Path, given: dict[str, Any], message: str
) -> None:
    complete: dict[str, Any] = {"providers": ("serper",), "keys_dir": keys_dir}
    if "providers" not in given:
        complete["budget_usd"] = 1.0

    with pytest.raises(InvalidInput, match=message):
        await WebBackend(WebSettings(**{**complete, **given})).start()


@pytest.mark.parametrize("content", ["", " \n", "two words", "kéy", "a\nb"])
async def test_a_file_that_holds_no_key_is_refused_without_showing_it(keys_dir: Path, content: str) -> None:
    (keys_dir / "serper").write_text(content)

    with pytest.raises(InvalidInput, match=r"keys/serper must hold the key of serper and nothing else$"):
        await WebBackend(WebSettings(providers=("serper",), keys_dir=keys_dir, budget_usd=1.0)).start()


async def test_a_key_does_not_show_in_the_settings(keys_dir: Path) -> None:
    settings = WebSettings(providers=("serper",), keys_dir=keys_dir)

    assert "s3cret" not in f"{settings!r} {settings.key_of('serper')!r} {settings.model_dump()}"


async def test_a_backend_answers_between_start_and_close(keys_dir: Path) -> None:
    backend = WebBackend(WebSettings(providers=("serper",), keys_dir=keys_dir, budget_usd=1.0))
    with pytest.raises(NotReady):
        await backend.check()

    await backend.start()
    await backend.check()
    with pytest.raises(NotFound, match="corpus: 'wiki' is not one of default, web"):
        await backend.search(Ask(["x"], [1], corpus="wiki"))
    assert [(info.name, info.kind, info.num_passages) for info in backend.corpora()] == [
        ("default", "web", 0),
        ("web", "web", 0),
    ]

    await backend.close()
    with pytest.raises(NotReady):
        await backend.search(Ask(["x"], [1]))
