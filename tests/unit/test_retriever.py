"""One protocol for search in the process and across HTTP, and every way a service fails."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from minisearch.errors import InputError
from minisearch.index import BM25Index
from minisearch.retriever import BM25Retriever, RemoteRetriever, serving
from minisearch.text import words

CORPUS = [
    {"id": "a", "contents": '"Mara Velin"\nShe was born in Oskar Bay.'},
    {"id": "b", "contents": '"Oskar Bay"\nA town on the coast, founded in 1840.'},
    {"id": "c", "contents": '"Ole Brandt"\nHe was born in Lindholm.'},
    {"id": "d", "contents": '"Zürich"\n"Zürich" is a town.'},
]
QUERIES = ["Mara Velin", "where is Oskar Bay", "xyzzy", "", "town", "Zürich \ud83d"]


@pytest.fixture(scope="module")
def bm25() -> BM25Retriever:
    return BM25Retriever(CORPUS)


def ids(results) -> list[list[str]]:
    return [[hit["document"]["id"] for hit in hits] for hits in results]


@contextmanager
def scripted(*answers):
    """A service that gives these answers in turn, the last one for ever; counts the requests.

    An answer is (status, body), or a number of seconds to wait before a good one.
    """
    requests: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = answers[min(len(requests), len(answers) - 1)]
            requests.append(request)
            if isinstance(answer, float):
                time.sleep(answer)
                answer = (200, good(request))
            status, body = answer
            try:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())
            except ConnectionError:
                pass

        def log_message(self, *_) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/retrieve", requests
        running.shutdown()
        thread.join()


def good(request: dict) -> dict:
    hits = [{"document": {"id": q, "contents": f'"{q}"\n'}, "score": 1} for q in request["queries"]]
    return {"result": [[hit] for hit in hits]}


def remote(url: str, **options) -> RemoteRetriever:
    return RemoteRetriever(url, **{"timeout": 5.0, "retries": 2, "backoff": 0.01, **options})


def post(url: str, body: bytes, **headers) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
    connection.request("POST", urlsplit(url).path, body, headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_title_and_text_are_searched_best_first(bm25):
    assert ids(bm25.batch_search(["town in 1840", "Mara"], topk=2)) == [["b", "d"], ["a"]]


def test_scores_are_those_of_the_index(bm25):
    found = BM25Index([words(d["contents"]) for d in CORPUS]).search([words("born in bay")], 3)
    (hits,) = bm25.batch_search(["born in bay"], 3)
    assert [hit["score"] for hit in hits] == found.scores[0].tolist()


def test_a_query_without_a_known_word_finds_nothing(bm25):
    assert bm25.batch_search(["xyzzy", ""], topk=3) == [[], []]


def test_passages_without_a_word_of_the_query_are_no_hits(bm25):
    assert ids(bm25.batch_search(["Lindholm"], topk=4)) == [["c"]]


def test_topk_above_the_corpus_is_capped(bm25):
    assert len(bm25.batch_search(["town born"], topk=50)[0]) == 4
    assert bm25.batch_search([], topk=3) == []


@pytest.mark.parametrize("topk", [0, -1, 2.0, True, None])
def test_topk_must_be_a_whole_number_from_1(bm25, topk):
    for retriever in (bm25, remote("http://127.0.0.1:1/retrieve")):
        with pytest.raises(InputError, match="topk: found"):
            retriever.batch_search(["town"], topk)


def test_ids_that_repeat_are_named():
    with pytest.raises(InputError, match="passage 5: found id 'b', which passage 2 has already"):
        BM25Retriever([*CORPUS, CORPUS[1]])


@pytest.mark.parametrize("topk", [1, 3])
def test_across_http_the_results_are_the_same(bm25, topk):
    expected = bm25.batch_search(QUERIES, topk)
    assert any(expected)
    with serving(bm25) as url:
        assert remote(url).batch_search(QUERIES, topk) == expected
        assert remote(url, batch_size=2).batch_search(QUERIES, topk) == expected
        assert remote(url).batch_search([], topk) == []


def test_the_wire_format_is_that_of_search_r1(bm25):
    request = {"queries": ["Lindholm"], "topk": 3}
    with serving(bm25) as url:
        status, scored = post(url, json.dumps({**request, "return_scores": True}).encode())
        _, plain = post(url, json.dumps(request).encode())
    assert status == 200
    ((hit,),) = scored["result"]
    assert hit["document"] == CORPUS[2]
    assert hit["score"] > 0
    assert plain == {"result": [[CORPUS[2]]]}


def test_large_batches_are_split_and_stay_in_order():
    queries = [str(number) for number in range(23)]
    with scripted(0.0) as (url, requests):
        results = remote(url, batch_size=10).batch_search(queries, 3)
    assert ids(results) == [[query] for query in queries]
    assert [len(request["queries"]) for request in requests] == [10, 10, 3]
    assert all(r["topk"] == 3 and r["return_scores"] is True for r in requests)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_service_that_fails_is_asked_again(status):
    with scripted((status, b"out of memory"), (status, b"busy"), 0.0) as (url, requests):
        assert ids(remote(url).batch_search(["q"], 1)) == [["q"]]
    assert len(requests) == 3


def test_a_service_that_goes_on_failing_is_an_error_that_quotes_it():
    message = r"status 500: out of memory; .* 3 attempts"
    with (
        scripted((500, b"out of memory")) as (url, requests),
        pytest.raises(InputError, match=message),
    ):
        remote(url).batch_search(["q"], 1)
    assert len(requests) == 3


def test_a_slow_answer_is_asked_for_again():
    with scripted(0.6, 0.0) as (url, requests):
        assert ids(remote(url, timeout=0.2).batch_search(["q"], 1)) == [["q"]]
    assert len(requests) == 2


def test_a_service_that_stays_slow_is_an_error():
    with scripted(0.5) as (url, _), pytest.raises(InputError, match="timed out") as error:
        remote(url, timeout=0.05, retries=1).batch_search(["q"], 1)
    assert error.value.where == url
    assert "raise timeout" in error.value.remedy


def test_waiting_grows_between_the_attempts(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with scripted((500, b"")) as (url, _), pytest.raises(InputError):
        remote(url, retries=3, backoff=0.5).batch_search(["q"], 1)
    assert [wait for wait in waits if wait] == [0.5, 1.0, 2.0]


def test_a_refused_connection_is_an_error_with_the_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/retrieve"
    with pytest.raises(InputError, match=r"[Rr]efused.* 3 attempts.*start the service") as error:
        remote(url).batch_search(["q"], 1)
    assert error.value.where == url


def hit(**changes) -> dict:
    return {"document": {"id": "a", "contents": "t\n"}, "score": 1.0, **changes}


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b"<html>hello</html>", "no JSON: b'<html>hello"),
        (b"", "no JSON"),
        ([], "[]"),
        ({"results": []}, "{'results': []}"),
        ({"result": None}, "{'result': None}"),
        ({"result": ["a", "b"]}, "{'result': ['a', 'b']}"),
        ({"result": [[hit()]]}, "1 results"),
        ({"result": [[], [], []]}, "3 results"),
        ({"result": [[], ["text"]]}, "the hit 'text'"),
        ({"result": [[], [{"id": "a", "contents": "t"}]]}, "the hit {'id': 'a'"),
        ({"result": [[], [hit(document={"id": "a"})]]}, "the hit {'document': {'id': 'a'}"),
        ({"result": [[], [hit(document={"contents": "t"})]]}, "the hit {'document'"),
        ({"result": [[], [hit(document={"id": "a", "contents": 3})]]}, "'contents': 3"),
        ({"result": [[], [hit(score=None)]]}, "'score': None"),
        ({"result": [[], [hit(score=float("nan"))]]}, "'score': nan"),
    ],
)
def test_garbage_is_an_error_at_once_that_shows_it(answer, found):
    with scripted((200, answer)) as (url, requests), pytest.raises(InputError) as error:
        remote(url).batch_search(["one", "two"], 1)
    assert error.value.where == url
    assert found in error.value.found
    assert len(requests) == 1


def test_a_refused_request_is_an_error_at_once(bm25):
    with serving(bm25) as url, pytest.raises(InputError, match=r"status 404.*POST /retrieve"):
        remote(url + "/wrong").batch_search(["q"], 1)


def test_an_address_without_a_scheme_is_refused():
    with pytest.raises(InputError, match="retriever url: found '127"):
        RemoteRetriever("127.0.0.1:8000")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{", "no JSON"),
        (b"[]", "queries: found None"),
        (b'{"queries": "q"}', "queries: found 'q'"),
        (b'{"queries": ["q", 1]}', "queries: found ['q', 1]"),
        (b'{"queries": ["q"], "topk": 0}', "topk: found 0"),
        (b'{"queries": ["q"], "topk": "3"}', "topk: found '3'"),
        (b'{"queries": ["q"], "return_scores": 1}', "return_scores: found 1"),
    ],
)
def test_a_malformed_request_gets_400_and_the_reason(bm25, body, named):
    with serving(bm25) as url:
        status, answer = post(url, body)
        assert status == 400
        assert named in answer["error"]
        assert ids(remote(url).batch_search(["Lindholm"], 1)) == [["c"]]


@pytest.mark.parametrize("length", ["-1", "many", str(1 << 40)])
def test_a_request_of_unknown_or_absurd_length_is_refused(bm25, length):
    with serving(bm25) as url:
        status, answer = post(url, b"", **{"Content-Length": length})
    assert status == 400
    assert length in answer["error"]


def test_a_retriever_that_breaks_is_reported_and_the_service_goes_on(bm25):
    class Fragile:
        def batch_search(self, queries, topk):
            if queries == ["break"]:
                raise ZeroDivisionError("by zero")
            return bm25.batch_search(queries, topk)

    with serving(Fragile()) as url:
        with pytest.raises(InputError, match=r"status 500.*ZeroDivisionError: by zero"):
            remote(url).batch_search(["break"], 1)
        assert ids(remote(url).batch_search(["Lindholm"], 1)) == [["c"]]


def test_health_tells_whether_the_service_is_up(bm25):
    with serving(bm25) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
        for path, expected in (("/health", 200), ("/retrieve", 404)):
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == expected
            assert json.loads(response.read())


def test_requests_are_answered_side_by_side(bm25):
    meeting = threading.Barrier(2, timeout=5)

    class Meeting:
        def batch_search(self, queries, topk):
            meeting.wait()
            return bm25.batch_search(queries, topk)

    results = []
    with serving(Meeting()) as url:
        asked = remote(url, retries=0)
        threads = [
            threading.Thread(target=lambda: results.append(asked.batch_search(["Lindholm"], 1)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [ids(result) for result in results] == [[["c"]], [["c"]]]


def test_a_small_batch_costs_well_below_a_millisecond_a_query(bm25):
    corpus = [
        {
            "id": str(n),
            "contents": f'"Title {n}"\n' + " ".join(f"w{n * k % 997}" for k in range(60)),
        }
        for n in range(400)
    ]
    retriever = BM25Retriever(corpus)
    queries = [f"title {n} w{n} w{2 * n} what is it" for n in range(32)]
    best = 9.0
    for _ in range(5):
        start = time.perf_counter()
        retriever.batch_search(queries, 3)
        best = min(best, time.perf_counter() - start)
    assert 32 / best > 2_000  # queries a second; ten times as many on an idle machine
