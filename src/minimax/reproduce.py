"""Runs the long experiments once and records them: ``python -m minimax.reproduce WHAT --help``.

Floor 5; called by you.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minimax import chapters, collapse, dcgan, recorded, robust
from minimax.attacks import photographs, substitutes
from minimax.data import DataError
from minimax.listing import listing
from minimax.recorded.origin import changes
from minimax.scale import use_device

DESCRIPTION = """Runs the long experiments once and records them. A long run that was killed goes
on when the same version is asked for the same again. A tree with changes that no commit holds is
refused unless --dirty is given. Chapters are run from a clone: the installed package has none.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m minimax.reproduce", description=DESCRIPTION)
    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")

    def kind(name: str, about: str, record: Callable[[argparse.Namespace], None]) -> Any:
        one = kinds.add_parser(name, help=about, description=about)
        one.set_defaults(record=record)
        if name != "list":
            text = "record although no commit holds this tree"
            one.add_argument("--dirty", action="store_true", help=text)
        return one

    def goes_to(one: argparse.ArgumentParser) -> None:
        text = "the folder of records; default: the package's own"
        one.add_argument("--out", type=Path, default=recorded.FOLDER, help=text)

    def with_seeds(one: argparse.ArgumentParser) -> None:
        one.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")

    kind("list", "Show what is recorded: when, where, with which seeds, and what is stale.", _list)

    one = kind("chapter", "Run a chapter at paper scale, one seed after another.", _chapter)
    names = chapters.chapters()
    one.add_argument("name", choices=names or None, metavar="NAME", help=", ".join(names) or None)
    with_seeds(one)

    one = kind("timings", "Measure what each chapter takes at quick scale.", _timings)
    one.add_argument("names", nargs="*", metavar="NAME", help="chapters; default: all")

    one = kind("dcgan", "Train a DCGAN and record its generator; alone or under torchrun.", _dcgan)
    one.add_argument("--data", choices=list(dcgan.DCGANS), required=True)
    for name in ("rounds", "batch", "features"):
        one.add_argument(f"--{name}", type=_count, help="not the usual number; needs --out")
    one.add_argument("--float32", action="store_true", help="no bfloat16")
    goes_to(one)

    one = kind("collapse", "Play the cells of a table of Remedies that lack a record.", _cells)
    one.add_argument("--table", choices=list(collapse.TABLES), required=True)
    one.add_argument("--method", choices=list(collapse.METHODS), help="only this one")
    one.add_argument("--pack", type=_count, default=1, help="samples that D sees at once")
    one.add_argument("--copies", type=_count, default=10, help="games of each cell")
    one.add_argument("--scale", choices=list(collapse.BUDGETS), default="paper")
    one.add_argument("--rounds", type=_count, help="not the usual number; needs --out")
    one.add_argument("--cluster", metavar="ADDRESS", help="of a Dask scheduler, to play on")
    goes_to(one)

    robustly = "Train the robust network of Defenses on MNIST and record its weights."
    kind("robust", robustly, lambda arguments: robust.record_robust_mnist())
    fast = "Train networks of Defenses by single steps, as Wong et al. do, and record how they do."
    maxout = "Train maxout networks with FGSM and without, as Goodfellow et al. do; record errors."
    one = kind("fast", fast, lambda arguments: robust.record_fast_mnist(arguments.seeds))
    with_seeds(one)
    one = kind("maxout", maxout, lambda arguments: robust.record_maxout_mnist(arguments.seeds))
    with_seeds(one)
    hard = "Attack that network and an ordinary one, for Evaluating defenses; record what is left."
    kind("attacks", hard, lambda arguments: robust.record_attacks())
    seen = "Attack the photographs with the pretrained network and record what it then says."
    kind("photographs", seen, lambda arguments: photographs.record_squeezenet())
    small = "Train the small network of Adversarial examples on CIFAR-10's JPEG copy."
    kind("colours", small, lambda arguments: photographs.record_colour_network())
    camera = "Photograph the 40 photographs and the attacks on them, and record what is read."
    kind("camera", camera, lambda arguments: photographs.record_camera())
    grid = "Steal networks that read MNIST by substitutes, and record which of them fool which."
    kind("substitutes", grid, lambda arguments: substitutes.record_substitutes())
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _list(arguments: argparse.Namespace) -> None:
    print("\n".join(listing()))


def _chapter(arguments: argparse.Namespace) -> None:
    chapters.record_chapter(arguments.name, arguments.seeds)


def _timings(arguments: argparse.Namespace) -> None:
    chapters.record_timings(arguments.names or chapters.chapters())


def _dcgan(arguments: argparse.Namespace) -> None:
    _refuse_trials(arguments, "rounds", "batch", "features", "float32")
    given = {name: getattr(arguments, name) for name in ("rounds", "batch", "features")}
    changed = {name: value for name, value in given.items() if value is not None}
    if arguments.float32:
        changed["bf16"] = False
    dcgan.record_dcgan(arguments.data, arguments.out, **changed)


def _refuse_trials(arguments: argparse.Namespace, *options: str) -> None:
    for option in options:
        if getattr(arguments, option) and arguments.out == recorded.FOLDER:
            raise SystemExit(
                f"--{option} makes a trial and no record of the book: add --out FOLDER."
            )


def _cells(arguments: argparse.Namespace) -> None:
    _refuse_trials(arguments, "rounds")
    table, pack, scale = arguments.table, arguments.pack, arguments.scale
    methods = [arguments.method] if arguments.method else list(collapse.METHODS)
    cells = [collapse.Cell(table, method, pack, scale) for method in methods]
    changed = {} if arguments.rounds is None else {"rounds": arguments.rounds}
    collapse.record_cells(cells, arguments.copies, arguments.out, arguments.cluster, **changed)


def main(command: Sequence[str] | None = None) -> None:
    """Record what ``command`` asks for; the default are the arguments of the process."""
    arguments = _parser().parse_args(command)
    if not getattr(arguments, "dirty", True) and (changed := changes()):
        raise SystemExit(
            f"No commit holds what this tree has: {', '.join(changed[:5])}"
            f"{' …' if len(changed) > 5 else ''}. Commit it, or pass --dirty."
        )
    try:
        use_device("paper")
        if out := getattr(arguments, "out", None):
            out.mkdir(parents=True, exist_ok=True)
        arguments.record(arguments)
    except (ValueError, DataError, OSError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main(sys.argv[1:])
