"""What several test files share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # beside others: before torch begins, and for what we start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from minimax import figures, recorded  # noqa: F401  (they are patched below)
from minimax.data import load

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``data`` want the real data; nobody else needs to have them."""
    folder = os.environ.get("MINIMAX_DATA")
    if folder and Path(folder).is_dir():
        return
    skip = pytest.mark.skip(reason="MINIMAX_DATA names no folder with the real data")
    for item in items:
        if "data" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file, a chapter among them, is for one process; whole executions of chapters are apart.

    (Marks of xdist_group would say the same, but pytest-xdist 3.8 loses them under pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            apart = "other_seeds" in nodeid or "a_chapter_runs" in nodeid
            return nodeid if apart else nodeid.split("::")[0]

    return ByFile(config, log)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """An empty MINIMAX_DATA and an empty cache, for tests of what happens to files."""
    given, cache = tmp_path / "given", tmp_path / "cache"
    given.mkdir()
    monkeypatch.setenv("MINIMAX_DATA", str(given))
    monkeypatch.setenv("MINIMAX_CACHE", str(cache))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    return given, cache


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load("digits", split="test")
    return data.x, data.y


@pytest.fixture(scope="session")
def network() -> nn.Module:
    """A small convolutional network that reads the 8×8 digits."""
    torch.manual_seed(0)
    data = load("digits", split="train")
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 64, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(200):
        rows = torch.randint(len(data), (128,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(data.x[rows]), data.y[rows]).backward()
        optimiser.step()
    return model.eval()


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a piece of Python in a process of its own."""

    def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, cwd=ROOT
        )

    return run


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, str], dict[str, object]]]:
    """What cells display: pairs of data and metadata, as a notebook would store them."""
    outputs: list[tuple[dict[str, str], dict[str, object]]] = []

    def display(
        thing: object, metadata: dict[str, object] | None = None, raw: bool = False
    ) -> None:
        if raw:
            outputs.append((thing, metadata or {}))  # type: ignore[arg-type]
        elif hasattr(thing, "_repr_mimebundle_"):
            outputs.append(thing._repr_mimebundle_())
        else:
            outputs.append(({"text/html": thing.data}, metadata or {}))  # type: ignore[attr-defined]

    for module in ("minimax.claims", "minimax.figures.page", "minimax.recorded"):
        monkeypatch.setattr(sys.modules[module], "display", display)
    return outputs


def browser_path() -> str | None:
    """Chrome first: where both are, as on GitHub's machines, the driver is Chrome's."""
    return shutil.which("google-chrome") or shutil.which("chrome") or shutil.which("chromium")
