"""Write an analysis as files: pictures, numbers, animated boards, and one HTML page that needs no other file."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from hrm.analysis import pictures
from hrm.analysis.results import Analysis
from hrm.analysis.states import LEVELS
from hrm.files import write_json, written_beside
from hrm.inference.draw import draw_trace, save_gif

FILES = ("report.html", "analysis.json", *(f"{name}.png" for name in pictures.NAMES))
"""The files that :func:`write_report` writes, beside ``board-<n>.gif``."""


def write_report(analysis: Analysis, out: Path, title: str) -> None:
    """Write :data:`FILES`, and an animation of each puzzle in ``analysis.shown``, into the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    figures = {}
    for name, figure in pictures.draw(analysis).items():
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=110)
        figures[name] = stream.getvalue()
        with written_beside(out / f"{name}.png") as part:
            part.write_bytes(figures[name])
    boards = []
    for number, solution in enumerate(analysis.solutions(), 1):
        file = out / f"board-{number}.gif"
        save_gif(draw_trace(analysis.task, solution), file)
        boards.append(file.read_bytes())
    write_json(out / "analysis.json", {"title": title} | analysis.as_dict())
    with written_beside(out / "report.html") as part:
        part.write_text(page(analysis, title, figures, boards), encoding="utf-8")


def page(analysis: Analysis, title: str, figures: dict[str, bytes], boards: Sequence[bytes]) -> str:
    """The page of ``report.html.jinja``: ``figures`` are PNG by name, ``boards`` GIF. Every text is escaped."""
    environment = Environment(
        loader=PackageLoader("hrm.analysis", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    answers, config = analysis.answers, analysis.model
    layers = ", ".join(f"{name} {config[name]}" for name in ("H_layers", "L_layers") if name in config)
    return environment.get_template("report.html.jinja").render(
        title=title,
        summary=analysis.summary(),
        model={
            "parameters": f"{analysis.parameters:,}",
            "hidden size": config["hidden_size"],
            "heads": config["num_heads"],
            "layers": layers,
            "updates in a segment": f"{config['H_cycles']} x ({config['L_cycles']} of z_L, 1 of z_H)",
        },
        analysis=analysis,
        segments=[
            (step + 1, f"{answers.right[step].mean():.2%}", f"{answers.tokens_right[step].mean():.2%}")
            for step in range(answers.steps)
        ],
        ratios=[_ratios(analysis, trained) for trained in (True, False)],
        baselines="; ".join(
            f"{kind}: token loss {run.loss:.3f}, {run.exact_accuracy:.1%} of these puzzles solved"
            for kind, run in analysis.baselines.items()
        ),
        figures={name: _data_uri("png", image) for name, image in figures.items()},
        boards=[_data_uri("gif", board) for board in boards],
    )


def _ratios(analysis: Analysis, trained: bool) -> tuple[str, str, str, str]:
    high, low = (analysis.participation(trained, level) for level in LEVELS)
    return "trained" if trained else "untrained", f"{high:.2f}", f"{low:.2f}", f"{high / low:.2f}"


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
