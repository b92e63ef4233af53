"""The served classifier: answers, refusals, limits, and clients that misbehave."""

import contextlib
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
import torch

from minimax.attacks.serve import LARGEST, LabelServer, ask
from minimax.networks import predict


@pytest.fixture(scope="module")
def server(network):
    with LabelServer(network, (1, 8, 8)) as server:
        yield server


def test_it_answers_the_labels_and_counts_the_images(server, network, digits):
    x = digits[0][:20]
    before = server.queries
    assert torch.equal(ask(server.url, x), predict(network, x).argmax(1))
    assert server.queries == before + 20
    answer = httpx.post(server.url, json={"images": x[:1].tolist()})
    assert list(answer.json()) == ["labels"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "The request is no JSON"),
        (b"\xff\xfe\x00", 400, "The request is no JSON"),
        (b"[]", 422, 'an object with "images"'),
        (b'{"image": 1}', 422, 'an object with "images"'),
        (b'{"images": null}', 422, "images has shape ()"),
        (b'{"images": [[1], [1, 2]]}', 422, "nested lists of numbers"),
        (b'{"images": "abc"}', 422, "nested lists of numbers"),
        (b'{"images": []}', 422, "images has shape (0,)"),
        (json.dumps({"images": [[[0.0] * 8] * 8]}).encode(), 422, "has to be (N, 1, 8, 8)"),
        (json.dumps({"images": [[[[2.0] * 8] * 8]]}).encode(), 422, "between 0 and 1"),
        (json.dumps({"images": [[[[float("nan")] * 8] * 8]]}).encode(), 422, "between 0 and 1"),
        (b"[" * 100_000, 400, "The request is no JSON"),
    ],
)
def test_what_is_no_image_is_refused_in_one_sentence(server, body, status, says):
    before = server.queries
    answer = httpx.post(server.url, content=body)
    assert answer.status_code == status
    assert says in answer.json()["detail"]
    assert server.queries == before


def test_too_large_a_request_is_refused(server):
    def endless():
        for _ in range(LARGEST // 1_000_000 + 2):
            yield b" " * 1_000_000

    # The server may answer and close while we are still sending.
    with contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError):
        assert httpx.post(server.url, content=endless(), timeout=60).status_code == 413
    assert httpx.post(server.url, content=b"[]").status_code == 422


def test_other_addresses_and_methods(server):
    assert httpx.get(server.url).status_code == 405
    assert httpx.post(server.url + "/weights", content=b"").status_code == 404


def test_a_thousand_requests_at_once(server, network, digits):
    x = digits[0][:100]
    expected = predict(network, x).argmax(1).tolist()
    before = server.queries
    limits = httpx.Limits(max_connections=64)
    with httpx.Client(limits=limits, timeout=120) as client, ThreadPoolExecutor(64) as pool:

        def one(index):
            return client.post(server.url, json={"images": x[index % 100][None].tolist()}).json()

        answers = list(pool.map(one, range(1000)))
    assert [a["labels"][0] for a in answers] == [expected[i % 100] for i in range(1000)]
    assert server.queries == before + 1000


def test_clients_that_hang_up(server, network, digits):
    place = urlsplit(server.url)
    head = b"POST /labels HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    for sent in (b"", head, head + b'{"images": [[[', b"GARBAGE\r\n\r\n"):
        with socket.create_connection((place.hostname, place.port)) as client:
            client.sendall(sent)
    x = digits[0][:3]
    assert torch.equal(ask(server.url, x), predict(network, x).argmax(1))


def test_the_rate_limit_names_the_wait_and_the_client_keeps_to_it(network, digits):
    x = digits[0][:5]
    with LabelServer(network, (1, 8, 8), rate=50.0) as server:
        codes = [httpx.post(server.url, json={"images": x.tolist()}) for _ in range(30)]
        refused = [answer for answer in codes if answer.status_code == 429]
        assert refused
        assert float(refused[0].headers["Retry-After"]) > 0
        assert "The limit is 50 images a second" in refused[0].json()["detail"]
        assert server.queries == 5 * (30 - len(refused))
        assert torch.equal(ask(server.url, x), predict(network, x).argmax(1))


def test_the_server_is_gone_after_the_block(network, digits):
    with LabelServer(network, (1, 8, 8)) as server:
        url = server.url
    with pytest.raises(httpx.ConnectError):
        ask(url, digits[0][:1])


def test_refusals(server, network):
    with pytest.raises(ValueError, match=r"status 422\): images has shape \(2, 3\)"):
        ask(server.url, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="rate is 0"):
        LabelServer(network, (1, 8, 8), rate=0)
