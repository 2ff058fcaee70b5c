"""``hrm play``: a local page that shows how models think."""

import webbrowser
from typing import Annotated

import typer

from hrm.cli.options import Device, _shipped_models


def play(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL ...]",
            help="Models of Sudoku or mazes, as for the other commands (default: those that come with the package).",
            autocompletion=_shipped_models,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Port; 0 takes a free one.")] = 8321,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    device: Device = "auto",
) -> None:
    """Show on a page of this machine how a model thinks: type a puzzle, watch it segment by segment, step back.

    The page is served to this machine only. Without a server: hrm export MODEL --web DIR.
    """
    from hrm import models as shipped
    from hrm.locate import require_known

    names = models or shipped.names()[::-1]  # the larger Sudoku first
    for name in names:
        require_known(name)
    from hrm import api
    from hrm.play.catalogue import page_model, unique_names
    from hrm.play.server import Played, PlayServer
    from hrm.training.distributed import joined
    from hrm.weights import load

    with joined(device) as world:
        played = []
        for name, short in zip(names, unique_names(names)):
            loaded = load(name, world.device)
            played.append(Played(loaded, page_model(loaded, api.task_of_model(name, loaded), short)))
        with PlayServer(("127.0.0.1", port), played) as server:
            print(f"{server.url}    (Ctrl-C ends it)", flush=True)
            if browser:
                webbrowser.open(server.url)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print()
