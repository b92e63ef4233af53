"""Chapters as programs, executed and recorded from a clone: the package does not hold them.

Floor 5; called by listing, reproduce.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

from minimax import recorded
from minimax.errors import needs, refuse
from minimax.files import write_whole
from minimax.recorded.origin import ROOT, checkpoint_folder, origin

SLOW = 10.0  # seconds, from which on a cell says so before it runs
USED = """import json, resource
from minimax.recorded.origin import device_used
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, device_used()]))"""


def chapters() -> list[str]:
    """Return the chapters with code, as the table of contents has them; none without a clone."""
    toc = ROOT / "_toc.yml"
    return re.findall(r"book/(\w+)\.ipynb", toc.read_text("utf-8")) if toc.exists() else []


def _notebook(chapter: str) -> Any:
    path = ROOT / "book" / f"{chapter}.ipynb"
    if not path.exists():
        raise SystemExit(f"There is no chapter {chapter!r} in {path.parent}; run this in a clone.")
    with needs("record", "Reading a chapter"):
        import nbformat
    return nbformat.read(path, as_version=4)


def code(chapter: str) -> list[str]:
    """Return the code of each cell of ``chapter``, in Python: without IPython's magic."""
    python = TransformerManager().transform_cell
    cells = _notebook(chapter).cells
    return [python(cell.source) for cell in cells if cell.cell_type == "code"]


def paper_settings(chapter: str) -> list[str]:
    """Return what each ``at_scale`` of ``chapter`` gives at paper scale, as code."""
    nodes = [node for cell in code(chapter) for node in ast.walk(ast.parse(cell))]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    scaled = [call for call in calls if ast.unparse(call.func) == "at_scale"]
    return [
        ast.unparse(key.value) for call in scaled for key in call.keywords if key.arg == "paper"
    ]


def execute(chapter: str, environment: Mapping[str, str]) -> tuple[Any, float, float, str]:
    """Execute ``chapter``; return its notebook, the seconds, the peak GB and the device used."""
    notebook = _notebook(chapter)
    with needs("record", "Executing a chapter"):
        from nbclient import NotebookClient
        from nbformat.v4 import new_code_cell
    notebook.cells.append(new_code_cell(USED))
    # A cell of a quick run takes seconds: one that takes minutes waits for a kernel that hangs.
    timeout = None if environment.get("MINIMAX_SCALE") == "paper" else 300
    where = {"metadata": {"path": ROOT / "book"}}
    client = NotebookClient(notebook, timeout=timeout, resources=where)
    began = time.perf_counter()
    client.execute(env={**os.environ, "TQDM_DISABLE": "1", **environment})
    seconds = time.perf_counter() - began
    peak, device = json.loads(notebook.cells[-1].outputs[0].text)
    return notebook, seconds, peak / 2**20, device


def record_chapter(chapter: str, seeds: Sequence[int]) -> None:
    """Record the paper-scale run of ``chapter``; a killed run goes on with the next seed."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        refuse("seeds", list(seeds), "different whole numbers of at least 0, one or more")
    settings = paper_settings(chapter)
    source = [cell.source for cell in _notebook(chapter).cells]
    begun = origin()  # before the runs: the tree may change meanwhile
    given = {"source": source, "data": os.environ.get("MINIMAX_DATA")}
    kept = checkpoint_folder(Path(tempfile.gettempdir()), chapter, given)
    kept.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in seeds:
        file = kept / f"seed{seed}.json"
        if not file.exists():
            print(f"{chapter}, seed {seed} …", file=sys.stderr)
            environment = {"MINIMAX_SCALE": "paper", "MINIMAX_SEED": str(seed)}
            notebook, seconds, memory, device = execute(chapter, environment)
            measured: dict[str, float] = {}
            for cell in notebook.cells:
                for output in cell.get("outputs", []):
                    measured |= output.get("metadata", {}).get("minimax_table", {}).get(
                        "measured", {}
                    )  # fmt: skip
            one = {"measured": measured, "seconds": seconds, "memory_gb": memory,
                   "device": device}  # fmt: skip
            write_whole(file, json.dumps(one).encode())
        runs.append(json.loads(file.read_text("utf-8")))
    record = begun | {
        "device": ", ".join(sorted({one["device"] for one in runs})),
        "seconds": sum(one["seconds"] for one in runs),
        "memory_gb": max(one["memory_gb"] for one in runs),
        "seeds": list(seeds),
        "settings": settings,
        "measured": {key: [one["measured"][key] for one in runs] for key in runs[0]["measured"]},
    }
    recorded.write(f"{chapter}/chapter", record)
    shutil.rmtree(kept)


def record_timings(chapters: Sequence[str]) -> None:
    """Record what each chapter takes and downloads at quick scale, without data or caches."""
    if not chapters:
        raise SystemExit(f"There are no chapters in {ROOT / 'book'}; run this in a clone.")
    for chapter in chapters:
        with tempfile.TemporaryDirectory() as folder:
            empty = dict.fromkeys(("MINIMAX_DATA", "MINIMAX_CACHE", "TORCH_HOME"), folder)
            begun = origin()
            notebook, seconds, memory, device = execute(chapter, empty | {"MINIMAX_SCALE": "quick"})
            fetched = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        slow = {name: taken for name, taken in _cells(notebook) if taken > SLOW}
        one = {
            "seconds": round(seconds, 1),
            "memory_gb": round(memory, 2),
            "downloads_mb": round(fetched / 1e6, 1),
            "slow": slow,
        }
        kind = "cpu" if "CPU core" in device else "gpu"
        others = (recorded.run("timings") or {}).get(chapter, {})
        recorded.write_row("timings", chapter, others | {kind: one | begun | {"device": device}})
        print(f"{chapter}: {seconds:.0f} s, {memory:.2f} GB", file=sys.stderr)


def _cells(notebook: Any) -> Iterator[tuple[str, float]]:
    """Yield a name for each cell, made of the code as its text has it, and its seconds."""
    for cell in notebook.cells:
        if "execution" in cell.metadata:
            began, ended = (
                datetime.fromisoformat(cell.metadata["execution"][event])
                for event in ("iopub.execute_input", "shell.execute_reply")
            )
            yield _name(cell.source), round((ended - began).total_seconds(), 1)


def _name(code: str) -> str:
    code = re.sub(r"^# (@title|takes about) .*\n", "", code, flags=re.MULTILINE)
    return hashlib.sha256(code.encode()).hexdigest()[:12]
