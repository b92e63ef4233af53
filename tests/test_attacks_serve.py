"""The served classifier: answers, refusals, limits, and clients that misbehave."""

import contextlib
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
import torch
from fastapi import HTTPException
from torch import nn

from minimax.attacks.serve import LARGEST, LabelServer, ask
from minimax.evaluation import predict_proba


@pytest.fixture(scope="module")
def network():
    """A classifier that need not know anything: only whether its answers arrive counts here."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


@pytest.fixture(scope="module")
def server(network):
    with LabelServer(network, (1, 8, 8)) as server:
        yield server


def test_it_answers_the_labels_and_counts_the_images(server, network, digits):
    x = digits[0][:20]
    before = server.queries
    assert torch.equal(ask(server.url, x), predict_proba(network, x).argmax(1))
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
    expected = predict_proba(network, x).argmax(1).tolist()
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
    assert torch.equal(ask(server.url, x), predict_proba(network, x).argmax(1))


def test_the_rate_limit_names_the_wait_and_the_client_keeps_to_it(network, digits):
    x = digits[0][:20]
    with LabelServer(network, (1, 8, 8), rate=10.0) as server:
        first, second = (httpx.post(server.url, json={"images": x.tolist()}) for _ in range(2))
        assert first.status_code == 200 and second.status_code == 429
        assert 0 < float(second.headers["Retry-After"]) <= 2
        assert "The limit is 10 images a second; come back in" in second.json()["detail"]
        assert server.queries == 20
        assert torch.equal(ask(server.url, x), predict_proba(network, x).argmax(1))


def test_as_many_images_as_the_rate_are_labelled_a_second(network, digits, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("minimax.attacks.serve.time.monotonic", lambda: now[0])
    server = LabelServer(network, (1, 8, 8), rate=4.0)
    for seconds, images, wait in ((0, 4, None), (0, 1, 0.25), (0.25, 1, None), (10, 4, None),
                                  (0, 2, 0.5), (0.25, 2, 0.25), (0.25, 2, None)):  # fmt: skip
        now[0] += seconds
        if wait is None:
            assert len(server._label(digits[0][:images])) == images
        else:
            with pytest.raises(HTTPException) as refused:
                server._label(digits[0][:images])
            assert refused.value.status_code == 429
            assert float(refused.value.headers["Retry-After"]) == pytest.approx(wait)
    assert server.queries == 11


def test_the_server_is_gone_after_the_block(network, digits):
    with LabelServer(network, (1, 8, 8)) as server:
        url = server.url
    with pytest.raises(ConnectionError, match=r"No server answers at 'http.*; is it running\?"):
        ask(url, digits[0][:1])
    with pytest.raises(ConnectionError, match="No server answers at ''"):
        ask(LabelServer(network, (1, 8, 8)).url, digits[0][:1])


def test_loopback_never_goes_through_a_proxy(server, network, digits, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "localhost")
    with pytest.raises(httpx.ConnectError):  # the proxy would be asked, and is not there
        httpx.post(server.url, content=b"[]")
    x = digits[0][:2]
    assert torch.equal(ask(server.url, x), predict_proba(network, x).argmax(1))


def test_a_server_may_be_started_twice_and_again(network, digits):
    x = digits[0][:2]
    server = LabelServer(network, (1, 8, 8))
    server.stop()  # one that never ran
    for _ in range(2):
        with server.start() as running:
            assert running is server and server.start() is server
            assert torch.equal(ask(server.url, x), predict_proba(network, x).argmax(1))
        server.stop()
    assert server.queries == 4


class Broken(nn.Module):
    """A network that is well at one image and returns NaN, or raises, where a pixel is black."""

    def __init__(self, raises=False):
        super().__init__()
        self.raises = raises

    def forward(self, x):
        black = (x == 0).flatten(1).any(1, keepdim=True)
        if self.raises and black.any():
            raise KeyError("black\nand more")
        return torch.where(black, torch.nan, torch.eye(10)[:1])


@pytest.mark.parametrize(("raises", "says"), [(False, "NaN or infinity"), (True, "black")])
def test_a_model_that_fails_is_answered_in_one_sentence(raises, says, capfd):
    with LabelServer(Broken(raises), (1, 8, 8)) as server:
        assert ask(server.url, torch.ones(2, 1, 8, 8)).tolist() == [0, 0]
        answer = httpx.post(server.url, json={"images": torch.zeros(2, 1, 8, 8).tolist()})
        assert answer.status_code == 500
        detail = answer.json()["detail"]
        assert detail.startswith("The model failed: ") and says in detail and "\n" not in detail
        with pytest.raises(ValueError, match=r"status 500\): The model failed"):
            ask(server.url, torch.zeros(2, 1, 8, 8))
        assert server.queries == 2
    assert "Traceback" not in capfd.readouterr().err


def test_a_model_that_can_not_label_an_image_is_not_served(network):
    class Nan(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 10), float("nan"))

    with pytest.raises(ValueError, match="model is returning NaN"):
        LabelServer(Nan(), (1, 8, 8)).start()
    message = r"shape is \(1, 28, 28\); it has to be that of images which the model takes \(.*\)\.$"
    with pytest.raises(ValueError, match=message):
        LabelServer(network, (1, 28, 28)).start()
    for shape in ((), 8, (1, 8, 0), (1, 8.0, 8)):
        with pytest.raises(ValueError, match="shape is"):
            LabelServer(network, shape)
    with pytest.raises(ValueError, match="model is of type function"):
        LabelServer(lambda x: network(x), (1, 8, 8))


def test_refusals(server, network):
    with pytest.raises(ValueError, match=r"status 422\): images has shape \(2, 3\)"):
        ask(server.url, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="images is list"):
        ask(server.url, [[0.0]])
    for rate in (0, -1.0, float("nan"), "fast"):
        with pytest.raises(ValueError, match="rate is"):
            LabelServer(network, (1, 8, 8), rate=rate)
