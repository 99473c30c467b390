"""Small parts of a page of HTML: text that is not ours, colours, shares, tables."""

import html
from collections.abc import Sequence
from typing import NamedTuple

_TALL = 40  # rows above which a table scrolls by itself


class Cell(NamedTuple):
    """Of a table: HTML, the number it is sorted by, its classes and its style."""

    html: str
    value: float | None = None
    kind: str = ""
    style: str = ""


def text(value: object) -> str:
    """Text of others, which may be written from right to left."""
    return f"<bdi>{html.escape(str(value))}</bdi>"


def swatch(colour: Sequence[int]) -> str:
    """A square of a colour, for a legend."""
    red, green, blue = (int(value) for value in colour)
    return f'<span class=swatch style="--colour:rgb({red} {green} {blue})"></span>'


def percent(share: float) -> str:
    """A share of one in per cent."""
    return f"{share:.1%}" if share >= 0.0005 or not share else "&lt;0.1%"


def table(
    caption: str, heading: Sequence[str], rows: Sequence[Sequence[Cell]], *, sortable: bool = False
) -> str:
    """A table that scrolls by itself where the page is narrow; the first cells name the rows.

    Headings and cells are HTML, the caption is text.
    """
    kind = " class=sortable" if sortable else ""
    tall = " tall" if len(rows) > _TALL else ""
    written = [cell.kind == "text" for cell in rows[0]]
    heads = "".join(
        f"<th scope=col{' class=text' if left else ''}>{name}</th>"
        for name, left in zip(heading, written, strict=True)
    )
    name = html.escape(caption)
    return (
        f'<div class="scroll{tall}" tabindex=0 role=region aria-label="{name}"><table{kind}>'
        f"<caption><span>{name}</span></caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(row(cells) for cells in rows)}</tbody></table></div>"
    )


def row(cells: Sequence[Cell]) -> str:
    """A row of a table, named by its first cell."""
    named, *rest = cells
    parts = [f"<tr><th scope=row>{named.html}</th>"]
    for cell in rest:
        kind = f' class="{cell.kind}"' if cell.kind else ""
        value = f' data-v="{cell.value:.8g}"' if cell.value is not None else ""
        style = f' style="{cell.style}"' if cell.style else ""
        parts.append(f"<td{kind}{value}{style}>{cell.html}</td>")
    return "".join(parts) + "</tr>\n"
