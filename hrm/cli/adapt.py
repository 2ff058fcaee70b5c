"""``hrm adapt``: a trained model for puzzles it has not seen in training."""

from typing import Annotated

import typer

from hrm.cli import app
from hrm.cli.settings import folder, load_for, read_settings, seed
from hrm.errors import InputError
from hrm.files import require_new
from hrm.progress import begun, progress_bar


@app.command()
def adapt(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="Model folder, run, checkpoint or hub name.")],
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="data=DIR out=DIR",
            help="The data folder of the new tasks (hrm data arc), and the new model's. Further settings: steps=2000 "
            "batch_size=32 lr=0.01 weight_decay=0.1 init=mean|zero seed=0.",
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace the model in out= where there is one.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Fit new puzzle embeddings to the demonstrations (the train split) of data=DIR; all other weights stay.

    The model saved in out=DIR is evaluated with hrm eval OUT data=DIR.
    """
    from hrm.data.format import open_dataset
    from hrm.training.adapt import adapt as fit
    from hrm.training.distributed import joined
    from hrm.weights import read_extra, save

    settings = read_settings(
        "adapt", values, out=folder, steps=int, batch_size=int, lr=float, weight_decay=float, init=str, seed=seed
    )
    data, out = settings.pop("data"), settings.pop("out", None)
    if out is None:
        raise InputError("hrm adapt writes a model; give out=DIR")
    require_new(out, force, "model folder", ("config.json", "model.safetensors", "halting.*"))
    settings.setdefault("steps", 2000)
    with joined(device) as world, progress_bar() as progress:
        if world.size > 1:
            raise InputError("hrm adapt runs in one process; start it without torchrun")
        dataset = open_dataset(data, "train")
        model = load_for(dataset, checkpoint, world.device, "mean")
        tell = begun(progress, "adapting", settings["steps"])
        done = fit(model, dataset, progress=lambda step, _: tell(step), **settings)
        save(model, out, overwrite=force, **(read_extra(checkpoint) | {"adapted_to": str(data)}))
    print(f"token loss {done.loss_before:.4f} -> {done.loss_after:.4f} in {done.steps} steps; {out}")
