"""Small tables of results, as Markdown for files and terminals and as HTML for notebooks."""

import html
from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without a line break at the end."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def html_table(rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> str:
    """An HTML table whose last column, a number, is aligned to the right."""
    lines = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in header)}</tr>"] if header else []
    for *cells, number in rows:
        texts = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr>{texts}<td style="text-align: right">{html.escape(number)}</td></tr>')
    return f"<table>{''.join(lines)}</table>"
