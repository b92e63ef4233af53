"""Claims and tables: what a chapter says, checked by the machine and listed in the results page.

Floor 1; called by the book, recorded, figures.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from IPython.display import display

from minimax.errors import check_choice

KINDS = ("measured", "invariant", "recorded")
Bundle = tuple[dict[str, str], dict[str, Any]]


class ClaimFailed(AssertionError):
    """A sentence of the book turned out to be false in this run.

    Introduced in *How to use this book*.
    """


def claim(statement: str, holds: object, kind: str = "measured", **evidence: object) -> None:
    """Print ``statement`` with its evidence, or raise if it does not hold.

    ``holds`` is anything with a truth value; ``evidence`` are the numbers it rests on. ``kind`` is
    "measured" if it is a result of this run, "invariant" if it holds whatever was learned (ε = 0
    changes nothing), "recorded" if it reads recorded runs alone; the results page lists them apart.
    Raises ClaimFailed, with the same text, when the statement is false, and ValueError when
    there is no such kind, no evidence, or no single truth value: NaN, and a tensor of several, have
    none. Introduced in *How claims are chosen*.
    """
    check_choice("kind", kind, KINDS)
    if not evidence:
        raise ValueError(f"claim {statement!r} has no evidence; name at least one number.")
    several = math.prod(getattr(holds, "shape", ())) != 1
    if several or holds != holds:  # only NaN differs from itself
        raise ValueError(
            f"claim {statement!r} rests on {holds!r}; it has to be true or false: reduce several "
            "values by all() or any(), and compare a number with another."
        )
    if not bool(holds):
        raise ClaimFailed(_as_text("✗", statement, kind, evidence))
    display(_Claim(statement, kind, evidence))


def table(
    rows: Sequence[Mapping[str, object]],
    *,
    caption: str,
    measured: Mapping[str, float] | None = None,
) -> None:
    """Show ``rows`` (each maps a column's name to its value) as a table with a caption.

    A cell that is missing or None shows as "–". With ``measured``, the numbers of this run by name,
    the table also stands in the results page, and a recorded run keeps those numbers.
    Raises ValueError if there is no row. Introduced in *How to use this book*.
    """
    if not rows:
        raise ValueError(f"table {caption!r} has no rows; give at least one.")
    display(_Table([dict(row) for row in rows], caption, measured))


def number(value: object) -> str:
    """Return ``value`` as the book prints it: four significant digits for a float, "–" for None.

    Introduced in *How to use this book*.
    """
    if hasattr(value, "tolist"):  # a tensor, an array or one of their scalars
        value = value.tolist()
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {number(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(number(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _as_text(mark: str, statement: str, kind: str, evidence: Mapping[str, object]) -> str:
    shown = ", ".join(f"{name} = {number(value)}" for name, value in evidence.items())
    return f"{mark} {statement}  [{shown}]" + (f"  ({kind})" if kind != KINDS[0] else "")


class _Claim:
    def __init__(self, statement: str, kind: str, evidence: Mapping[str, object]) -> None:
        self.statement, self.kind = statement, kind
        self.evidence = {name: number(value) for name, value in evidence.items()}

    def __repr__(self) -> str:
        return _as_text("✓", self.statement, self.kind, self.evidence)

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        shown = ", ".join(
            f"{html.escape(name.replace('_', ' '))} = {html.escape(value)}"
            for name, value in self.evidence.items()
        )
        markup = (
            '<p style="border-left:.25em solid #2a9d5c;padding:.2em .8em;margin:.4em 0">'
            f"<strong>✓</strong> {html.escape(self.statement)} "
            f'<span style="opacity:.75">({shown})'
            f"{f' · {self.kind}' if self.kind != KINDS[0] else ''}</span></p>"
        )
        record = {"statement": self.statement, "kind": self.kind, "evidence": self.evidence}
        return {"text/plain": repr(self), "text/html": markup}, {"minimax_claim": record}


class _Table:
    def __init__(
        self,
        rows: list[dict[str, object]],
        caption: str,
        measured: Mapping[str, float] | None,
    ) -> None:
        self.columns = list(dict.fromkeys(column for row in rows for column in row))
        self.rows = [[number(row.get(column)) for column in self.columns] for row in rows]
        self.caption, self.measured = caption, measured

    def __repr__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([self.caption, *text])

    def _repr_mimebundle_(self, **_: object) -> Bundle:
        head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>"
            for row in self.rows
        )
        markup = (
            '<table class="table"><caption style="caption-side:top">'
            f"{html.escape(self.caption)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )
        data = {"text/plain": repr(self), "text/html": markup}
        if self.measured is None:
            return data, {}
        record = {"caption": self.caption, "columns": self.columns, "rows": self.rows}
        return data, {"minimax_table": record | {"measured": dict(self.measured)}}
