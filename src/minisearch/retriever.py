"""Search as a tool: one protocol for an index in this process and for a service across the network.

The wire format is that of Search-R1's retrieval server, so that its server and ours, and its
client and ours, can replace one another.

Source: Search-R1 (arXiv 2503.09516), the public server.
"""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, TypedDict

from minisearch.data.qa import Document
from minisearch.errors import InputError
from minisearch.index import BM25Index
from minisearch.text import words

MAX_BODY = 1 << 26  # bytes of a request
NOWHERE = {"error": "there are POST /retrieve and GET /health, and nothing else"}


class Hit(TypedDict):
    """One passage found, and how well it matches; greater is better."""

    document: Document
    score: float


class Retriever(Protocol):
    """Anything that finds passages."""

    def batch_search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """At most `topk` passages a query, best first; one list a query, in the queries' order."""
        ...


class BM25Retriever:
    """BM25 over titles and texts, in memory.

    A passage without any word of the query is not a hit: a list may be shorter than `topk`.

    Raises:
        InputError: for no passages, ids that repeat, or passages without a word.
    """

    def __init__(self, corpus: Sequence[Document]) -> None:
        self._corpus = list(corpus)
        if not self._corpus:
            remedy = "check the file or the filter that it comes from."
            raise InputError("corpus", "no passage", "at least one", remedy)
        rows: dict[str, int] = {}
        for row, document in enumerate(self._corpus, 1):
            if rows.setdefault(document["id"], row) != row:
                found = f"id {document['id']!r}, which passage {rows[document['id']]} has already"
                remedy = "give each passage its own id."
                raise InputError(f"corpus, passage {row}", found, "an id of its own", remedy)
        self._index = BM25Index([words(document["contents"]) for document in self._corpus])

    def batch_search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """As `Retriever`. Raises: InputError for `topk` below 1; above the corpus it is capped."""
        check_topk(topk)
        found = self._index.search([words(q) for q in queries], min(topk, len(self._corpus)))
        return [
            [
                {"document": self._corpus[row], "score": score}
                for row, score in zip(rows, scores, strict=True)
                if score > -math.inf
            ]
            for rows, scores in zip(found.ids.tolist(), found.scores.tolist(), strict=True)
        ]


class RemoteRetriever:
    """A retrieval service, asked over HTTP without a proxy.

    Waits and asks again where the service is away, slow, overloaded (429) or fails (5xx); an
    answer in another format, or any other refusal, is an error at once.

    Args:
        url: the service's address, e.g. `http://127.0.0.1:8000/retrieve`.
        timeout: seconds to wait for one answer.
        retries: further attempts for each request.
        backoff: seconds before the second attempt; doubled for each further one.
        batch_size: queries a request.
    """

    def __init__(
        self,
        url: str,
        timeout: float = 30.0,
        retries: int = 4,
        backoff: float = 0.5,
        batch_size: int = 256,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            expected = "an address such as http://127.0.0.1:8000/retrieve"
            raise InputError("retriever url", repr(url), expected, "name the service's address.")
        self.url, self.timeout, self.batch_size = url, timeout, batch_size
        self.retries, self.backoff = retries, backoff
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def batch_search(self, queries: Sequence[str], topk: int) -> list[list[Hit]]:
        """As `Retriever`.

        Raises:
            InputError: where the service stays away, refuses, or answers in another format.
        """
        check_topk(topk)
        results: list[list[Hit]] = []
        for start in range(0, len(queries), self.batch_size):
            part = list(queries[start : start + self.batch_size])
            request = {"queries": part, "topk": topk, "return_scores": True}
            results += self._hits(self._ask(json.dumps(request).encode()), len(part))
        return results

    def _ask(self, body: bytes) -> bytes:
        """The answer to one request, asked for until it comes or the attempts are used up."""
        found = ""
        for attempt in range(self.retries + 1):
            time.sleep(self.backoff * 2 ** (attempt - 1) if attempt else 0)
            request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
            try:
                with self._open(request, timeout=self.timeout) as response:
                    return bytes(response.read())
            except urllib.error.HTTPError as error:
                found = f"status {error.code}: {error.read(300).decode('utf-8', 'replace')}"
                if error.code < 500 and error.code != 429:
                    raise self._garbled(found, "status 200") from error
            except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out
                found = f"no answer ({getattr(error, 'reason', None) or error!r})"
        expected = f"an answer within {self.timeout:g} s, in one of {self.retries + 1} attempts"
        remedy = "start the service, or raise timeout or retries."
        raise InputError(self.url, found, expected, remedy)

    def _hits(self, content: bytes, count: int) -> list[list[Hit]]:
        """The hits in the answer to `count` queries."""
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise self._garbled(f"no JSON: {content[:80]!r}", "a JSON object") from error
        lists = answer.get("result") if isinstance(answer, dict) else None
        if not isinstance(lists, list) or not all(isinstance(hits, list) for hits in lists):
            raise self._garbled(repr(answer)[:80], '{"result": [[...], ...]}')
        if len(lists) != count:
            raise self._garbled(f"{len(lists)} results", f"{count}, one for each query")
        return [[self._hit(hit) for hit in hits] for hits in lists]

    def _hit(self, hit: Any) -> Hit:
        try:
            name, contents = hit["document"]["id"], hit["document"]["contents"]
            score = float(hit["score"])
            if isinstance(name, str | int) and isinstance(contents, str) and math.isfinite(score):
                return {"document": {"id": str(name), "contents": contents}, "score": score}
        except (TypeError, KeyError, ValueError):
            pass  # what is wrong with it is said below
        expected = '{"document": {"id", "contents"}, "score"}, the score finite'
        raise self._garbled(f"the hit {repr(hit)[:200]}", expected)

    def _garbled(self, found: str, expected: str) -> InputError:
        remedy = "check that the address is that of a retrieval service in Search-R1's format."
        return InputError(self.url, found, expected, remedy)


def check_topk(topk: Any) -> None:
    """Raises: InputError for anything but a whole number from 1."""
    if type(topk) is not int or topk < 1:
        raise InputError("topk", repr(topk), "a whole number from 1", "pass topk=3, for example.")


def check_hits(found: Any, count: int) -> None:
    """Raises: InputError where a retriever's answer to `count` queries breaks its protocol."""
    expected = f"{count} lists of hits with document id and contents"
    remedy = "correct the retriever; see `minisearch.retriever.Retriever`."
    lists = found if isinstance(found, list) else None
    if lists is None or len(lists) != count:
        given = type(found).__name__ if lists is None else f"{len(lists)} lists"
        raise InputError("retriever", given, expected, remedy)
    for hits in lists:
        if not isinstance(hits, list):
            raise InputError("retriever", repr(hits)[:80], expected, remedy)
        for hit in hits:
            document = hit.get("document") if isinstance(hit, dict) else None
            fields = document if isinstance(document, dict) else {}
            if not all(isinstance(fields.get(name), str) for name in ("id", "contents")):
                raise InputError("retriever", repr(hit)[:80], expected, remedy)


def answer_request(retriever: Retriever, body: bytes) -> dict[str, Any]:
    """What `POST /retrieve` answers: documents, each with its score where `return_scores` is set.

    Raises:
        InputError: naming the field of the request at fault.
    """
    remedy = 'send {"queries": ["..."], "topk": 3, "return_scores": true}.'
    try:
        request = json.loads(body)
    except ValueError as error:
        raise InputError("request", f"no JSON: {body[:80]!r}", "JSON", remedy) from error
    request = request if isinstance(request, dict) else {}
    queries, scored = request.get("queries"), request.get("return_scores", False)
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise InputError("request, queries", repr(queries)[:80], "a list of texts", remedy)
    if not isinstance(scored, bool):
        raise InputError("request, return_scores", repr(scored)[:80], "true or false", remedy)
    results = retriever.batch_search(queries, request.get("topk", 3))
    return {"result": results if scored else [[h["document"] for h in hits] for hits in results]}


def server(retriever: Retriever, host: str = "127.0.0.1", port: int = 8000) -> ThreadingHTTPServer:
    """A server of `POST /retrieve` and `GET /health`; `serve_forever()` runs it.

    A request that is wrong gets status 400, a failure of the retriever 500, both with a JSON
    object whose `error` says what is wrong. Port 0 takes any free one.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = self.path == "/health"
            self._send(200 if found else 404, {"status": "ok"} if found else NOWHERE)

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isdigit() or int(length) > MAX_BODY:
                self.close_connection = True  # the body cannot be told from a next request
                text = f"Content-Length {length or 'missing'}; expected at most {MAX_BODY} bytes"
                return self._send(400, {"error": text})
            body = self.rfile.read(int(length))
            try:
                found = self.path == "/retrieve"
                answer = answer_request(retriever, body) if found else NOWHERE
                self._send(200 if found else 404, answer)
            except InputError as error:
                self._send(400, {"error": str(error)})
            except ConnectionError:  # the client has given up waiting
                self.close_connection = True
            except Exception as error:  # the service must outlive one bad request
                self._send(500, {"error": f"{type(error).__name__}: {error}"})

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: a training run asks some thousand times a minute."""

    return ThreadingHTTPServer((host, port), Handler)


@contextmanager
def serving(retriever: Retriever) -> Iterator[str]:
    """Serve from a thread of this process while the block runs; gives the address."""
    with server(retriever, port=0) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/retrieve"
        finally:
            running.shutdown()
            thread.join()
