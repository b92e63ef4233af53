"""A classifier behind HTTP on this machine: whoever asks gets labels, and nothing else."""

import json
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minimax.errors import check_count, check_model, check_number, described, needs, refuse
from minimax.evaluation import predict_proba

with needs("serve", "A classifier behind HTTP"):
    import httpx
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect

LARGEST = 64_000_000  # bytes of one request


class LabelServer:
    """Serve ``model`` on loopback, from ``start`` to ``stop`` or while a ``with`` block lasts.

    ``url`` is the address and ``queries`` the number of images that were labelled. A request is
    ``POST /labels`` with JSON ``{"images": …}``, N images of ``shape`` with pixels in [0, 1]; the
    answer is ``{"labels": [N classes]}``. What is not such a request is answered with 400 (no
    JSON), 413 (too large), or 422 (no such images), and one sentence; where the model itself fails,
    with 500 and one. With ``rate``, so many images a second are labelled, and as many at once; more
    are answered with 429 and the seconds to wait. Raises ValueError for a rate that is not positive
    or a shape that is none. Introduced in *Black-box and physical attacks*.
    """

    def __init__(
        self, model: nn.Module, shape: tuple[int, ...], *, rate: float | None = None
    ) -> None:
        check_model(model)
        if not isinstance(shape, Sequence) or not shape:
            refuse("shape", shape, "that of one image, such as (1, 28, 28)")
        if rate is not None and check_number("rate", rate) == 0:
            refuse("rate", rate, "above 0, or None for no limit")
        self.model, self.rate = model, rate
        self.shape = tuple(check_count("shape", length) for length in shape)
        self.url, self.queries = "", 0
        self._allowance, self._since = rate or 0.0, time.monotonic()
        self._one_at_a_time = threading.Lock()
        self._running: tuple[uvicorn.Server, threading.Thread] | None = None

    def start(self) -> "LabelServer":
        """Start serving, and return once the server answers; one that answers already goes on.

        Raises ValueError if the model can't label an image of ``shape``.
        """
        if self._running:
            return self
        self._try()
        app = FastAPI(openapi_url=None)
        app.post("/labels")(self._answer)
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("The server did not start; is there no port left on loopback?")
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/labels"
        self._running = server, thread
        return self

    def stop(self) -> None:
        """Answer what has come in, and stop, if it runs. It may be started again."""
        if self._running:
            server, thread = self._running
            self._running = None
            server.should_exit = True
            thread.join()

    def _try(self) -> None:
        """Refuse a model that fails at one grey image."""
        try:
            self._labels(torch.full((1, *self.shape), 0.5))
        except (RuntimeError, TypeError, IndexError) as error:
            refuse("shape", self.shape, f"that of images which the model takes ({_line(error)})")

    def _labels(self, images: Tensor) -> list[int]:
        there = next(self.model.parameters(), images).device
        return predict_proba(self.model, images.to(there)).argmax(1).tolist()

    def __enter__(self) -> "LabelServer":
        return self.start()

    def __exit__(self, *reason: object) -> None:
        self.stop()

    async def _answer(self, request: Request) -> dict[str, list[int]]:
        images = self._images(await _body(request))
        return {"labels": await run_in_threadpool(self._label, images)}

    def _images(self, body: bytes) -> Tensor:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"The request is no JSON: {error}.") from None
        if not isinstance(content, dict) or "images" not in content:
            raise HTTPException(422, 'The JSON has to be an object with "images".')
        try:
            images = np.array(content["images"], dtype=np.float32)
        except (TypeError, ValueError, OverflowError):
            raise HTTPException(
                422, "images has to be nested lists of numbers, all as long."
            ) from None
        if images.ndim == 0 or images.shape[1:] != self.shape or len(images) == 0:
            allowed = f"(N, {', '.join(map(str, self.shape))}), N at least 1"
            raise HTTPException(422, f"images has shape {images.shape}; it has to be {allowed}.")
        if not (images.min() >= 0 and images.max() <= 1):  # written so that NaN is refused too
            raise HTTPException(422, "The pixels of images have to lie between 0 and 1.")
        return torch.from_numpy(images)

    def _label(self, images: Tensor) -> list[int]:
        with self._one_at_a_time:
            if self.rate is not None:
                now = time.monotonic()
                self._allowance += (now - self._since) * self.rate
                self._allowance, self._since = min(self._allowance, self.rate), now
                wait = (min(len(images), self.rate) - self._allowance) / self.rate
                if wait > 0:
                    text = f"The limit is {self.rate:g} images a second; come back in {wait:.2f} s."
                    raise HTTPException(429, text, headers={"Retry-After": f"{wait:.3f}"})
                self._allowance -= len(images)
            try:
                labels = self._labels(images)
            except Exception as error:  # whatever a model raises, the client is told
                raise HTTPException(500, f"The model failed: {_line(error)}") from error
            self.queries += len(images)
            return labels


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > LARGEST:
                raise HTTPException(413, f"A request may have at most {LARGEST:,} bytes.")
            parts.append(part)
    except ClientDisconnect:
        raise HTTPException(499, "The client hung up.") from None
    return b"".join(parts)


def ask(url: str, images: Tensor) -> Tensor:
    """Return the labels (N,) that the server at ``url`` gives to ``images`` (N, …).

    Waits where the server limits the rate. Raises ValueError with the server's sentence if it
    refuses the images, ConnectionError if no server answers. No proxy is asked, whatever the
    environment says: the server is on this machine. Introduced in *Black-box and physical attacks*.
    """
    if not isinstance(images, Tensor):
        refuse("images", described(images), "a tensor of shape (N, …)")
    content = json.dumps({"images": images.cpu().tolist()})
    while True:
        try:
            answer = httpx.post(url, content=content, timeout=60.0, trust_env=False)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise ConnectionError(
                f"No server answers at {url!r}; is it running? ({error})"
            ) from error
        if answer.status_code != 429:
            break
        time.sleep(float(answer.headers["Retry-After"]))
    if answer.status_code != 200:
        raise ValueError(f"The server refused (status {answer.status_code}): {_detail(answer)}")
    return torch.tensor(answer.json()["labels"], device=images.device)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _detail(answer: httpx.Response) -> Any:
    try:
        return answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return answer.text
