"""Models in the conventions of the Hugging Face hub: ``from_pretrained``, ``save_pretrained``, ``push_to_hub``.

A repository has ``config.json``, ``model.safetensors`` and a model card, ``README.md``, as :func:`save_pretrained`
writes them. :class:`hrm.HRM` has these functions as methods.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from hrm import models
from hrm.data.hub import reason_of
from hrm.errors import InputError
from hrm.files import folder_written_beside, written_beside
from hrm.locate import checkpoints, is_run, locate, read_best, require_known
from hrm.model import HRM
from hrm.models import Card
from hrm.weights import load, read_extra, write_model
from hrm.weights.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from hrm.weights.published import download

CARD_FILE = "README.md"
HALTING_FILE = "halting.json"
Model = TypeVar("Model", bound=HRM)


@dataclass(frozen=True)
class Result:
    """A measured result, for the model card.

    Attributes:
        puzzles: what was measured on, in words.
        metric: what was measured, such as ``exact accuracy``.
        value: the value, as the card shows it.
        command: reproduces it; None if there is none.
    """

    puzzles: str
    metric: str
    value: str
    command: str | None = None


@dataclass(frozen=True)
class ModelCard:
    """What a model card says besides the model's sizes.

    Attributes:
        name: the title.
        summary: what the model solves, in a sentence.
        data: how its training data are made.
        recipe: how it was trained.
        results: what was measured.
        example: a puzzle.
        license: of the weights, as the hub calls it (``apache-2.0``); None names none.
        made_with: versions, device and date, by name.
    """

    name: str
    summary: str = ""
    data: str | None = None
    recipe: str | None = None
    results: Sequence[Result] = ()
    example: str | None = None
    license: str | None = None
    made_with: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, checkpoint: Path | str) -> "ModelCard":
        """What is known of a model that :func:`hrm.load` loads: a shipped one, or one of a training run."""
        known = {card.name: card for card in models.cards()}
        if str(checkpoint) in known:
            return _of_shipped(known[str(checkpoint)])
        path, extra = Path(checkpoint), read_extra(checkpoint)
        run = next((folder for folder in (path, *path.absolute().parents) if is_run(folder)), None)
        results: tuple[Result, ...] = ()
        if run is not None and (best := read_best(run)) is not None:
            results = (Result("the test split of the run's data", best.metric, f"{best.value:.4f}"),)
        known_values = [f"{name} `{value}`" for name, value in sorted(extra.items()) if isinstance(value, str | int)]
        recipe = None if run is None else f"`hrm train`, run {run.name}, {len(checkpoints(run))} checkpoints kept"
        return cls(path.name or str(checkpoint), recipe=recipe, results=results, data="; ".join(known_values) or None)


def from_pretrained(
    kind: type[Model],
    name_or_folder: Path | str,
    *,
    revision: str | None = None,
    cache_dir: Path | str | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    token: str | bool | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Model:
    """Load a model from the hub or a folder, in evaluation mode.

    Args:
        kind: the class that the model must be of; :class:`hrm.HRM` takes every family.
        name_or_folder: what :func:`hrm.load` takes.
        revision: a branch, a tag or a commit of the hub's repository; a commit pins the model.
        cache_dir: the hub's cache (default: as huggingface_hub, ``HF_HOME``).
        local_files_only: use the cache only, as with ``HF_HUB_OFFLINE=1``.
        force_download: download again what the cache has.
        token: for the hub; None uses the stored one, False none.
        device: of the model.
        options: of :func:`hrm.load`, such as ``forward_dtype`` and ``puzzle_emb``.

    Raises:
        InputError: as :func:`hrm.load`; or a revision is given for a local folder, or the model is of another class.
    """
    name = str(name_or_folder)
    place: Path | str = name
    if locate(name).exists():
        if revision is not None:
            raise InputError(f"{name} is a local model, which has no revision {revision!r}; leave out revision")
    else:
        require_known(name)
        wanted = {
            "revision": revision,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only or None,
            "force_download": force_download or None,
            "token": token,
        }
        place = download(name, **{key: value for key, value in wanted.items() if value is not None})
    model = load(place, device, **options)
    if not isinstance(model, kind):
        raise InputError(
            f"{name} holds a model of class {type(model).__name__}, not {kind.__name__}; use "
            f"hrm.{type(model).__name__}.from_pretrained, or hrm.HRM.from_pretrained for every family"
        )
    return model


def save_pretrained(
    model: HRM, folder: Path | str, *, card: ModelCard | None = None, source: Path | str | None = None, **extra: Any
) -> None:
    """Write ``config.json``, ``model.safetensors`` and a model card, ``README.md``, into ``folder``.

    Other files of an existing folder stay, and these three are replaced, the configuration last: it has the checksum of
    the weights.

    Args:
        model: the model.
        folder: need not exist.
        card: what the model card says; None: what is known of ``source``.
        source: where the model comes from, as :func:`hrm.load` takes it; its task and its calibrated rule of halting
            (``halting.json``) are taken over.
        extra: more JSON values for ``config.json``, such as ``task``.

    Raises:
        InputError: the model's puzzle embedding is divided among processes, or ``source`` does not exist.
        OSError: the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    if card is None:
        card = ModelCard(folder.name) if source is None else ModelCard.of(source)
    if source is not None:
        extra = read_extra(source) | extra
    with tempfile.TemporaryDirectory() as temporary:
        part = Path(temporary)
        write_model(model, part, **extra)
        (part / CARD_FILE).write_text(card_text(model, card, extra.get("task")), encoding="utf-8")
        calibrated = None if source is None else locate(source) / HALTING_FILE
        if calibrated is not None and calibrated.is_file():
            shutil.copyfile(calibrated, part / HALTING_FILE)
        names = [name for name in (CARD_FILE, HALTING_FILE, WEIGHTS_FILE, CONFIG_FILE) if (part / name).is_file()]
        if not folder.exists():
            with folder_written_beside(folder) as new:
                for name in names:
                    shutil.copyfile(part / name, new / name)
            return
        for name in names:
            with written_beside(folder / name) as file:
                shutil.copyfile(part / name, file)


def push_to_hub(
    model: HRM,
    repo_id: str,
    *,
    card: ModelCard | None = None,
    source: Path | str | None = None,
    commit_message: str = "Upload model",
    private: bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    **extra: Any,
) -> str:
    """Upload what :func:`save_pretrained` writes to ``repo_id``, which is created if it does not exist.

    Args:
        model: the model.
        repo_id: ``owner/name``.
        card, source, extra: as for :func:`save_pretrained`.
        commit_message: of the commit.
        private: whether a new repository is private; None: as the owner's default.
        branch: the branch to commit to; created if needed. None is the main one.
        create_pr: open a pull request with the commit.
        token: for the hub; None uses the stored one.

    Returns:
        The address of the commit.

    Raises:
        InputError: the name is not one, there is no permission, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    card = card if card is not None or source is not None else ModelCard(repo_id.rpartition("/")[2])
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        save_pretrained(model, folder, card=card, source=source, **extra)
        try:
            created = api.create_repo(repo_id, private=private, exist_ok=True)
            if branch is not None:
                api.create_branch(created.repo_id, branch=branch, exist_ok=True)
            commit = api.upload_folder(
                repo_id=created.repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
            )
        except Exception as error:
            reason = reason_of(error)
            if reason is None:
                raise
            raise InputError(
                f"{repo_id} cannot be pushed to the hub ({reason}); check the name and the network, and log in with "
                "'hf auth login'"
            ) from None
    return str(commit.commit_url)


def card_text(model: HRM, card: ModelCard, task: str | None) -> str:
    """The model card as Markdown, with the hub's metadata in front."""
    config = model.config
    tags = dict.fromkeys(["hrm", config.family, "reasoning", "puzzles", *([task] if task else [])])
    head = ["---", "library_name: hrm", *([f"license: {card.license}"] if card.license else []), "tags:"]
    head += [f"- {tag}" for tag in tags] + ["---", "", f"# {card.name}", ""]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    parts = [f"{card.summary}\n" if card.summary else ""]
    parts.append(f"A model of the family {config.family} with {parameters:,} parameters: {config.summary()}.\n")
    example = f'\nsolution = hrm.solve(model, "{card.example}")\nprint(solution)' if card.example else ""
    kind = type(model).__name__
    parts.append(f'## Use\n\n```python\nimport hrm\n\nmodel = hrm.{kind}.from_pretrained("OWNER/NAME"){example}\n```\n')
    if card.data or card.recipe:
        parts.append("## Training\n")
        parts += [f"Data: {card.data}\n"] if card.data else []
        parts += [f"Recipe: {card.recipe}\n"] if card.recipe else []
    if card.results:
        rows = [f"| {one.puzzles} | {one.metric} | {one.value} | {_code(one.command)} |" for one in card.results]
        parts.append(
            "\n".join(["## Measured", "", "| puzzles | metric | value | data |", "|---|---|---|---|", *rows]) + "\n"
        )
    if card.made_with:
        parts.append("Made with " + ", ".join(f"{name} {value}" for name, value in card.made_with) + ".\n")
    return "\n".join([*head, *filter(None, parts)])


def _code(command: str | None) -> str:
    return f"`{command}`" if command else ""


def _of_shipped(card: Card) -> ModelCard:
    results = []
    for one in card.accuracy:
        puzzles = f"{one.count:,} {one.puzzles}"
        results.append(Result(puzzles, f"exact accuracy, {one.steps} segments", f"{one.exact_accuracy:.1%}", one.data))
        early = f"exact accuracy, halting early ({one.early_steps:.2f} segments)"
        results.append(Result(puzzles, early, f"{one.early_exact_accuracy:.1%}", one.data))
    return ModelCard(
        card.name,
        f"It solves: {card.puzzles}.",
        f"`{card.data}`",
        f"`hrm train {card.recipe}`, {card.training_steps:,} steps of {card.batch_size} puzzles",
        tuple(results),
        card.example,
        "apache-2.0",
        tuple(card.made_with.items()),
    )
