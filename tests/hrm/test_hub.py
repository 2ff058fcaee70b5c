"""Models in the hub's conventions, against a stand-in of the hub on the loopback address."""

import json

import pytest
import torch
from local_hub import local_hub

import hrm
from hrm.errors import InputError
from hrm.families import build
from hrm.hub import ModelCard, Result

SIZES = {
    "seq_len": 16,
    "vocab_size": 6,
    "hidden_size": 32,
    "num_heads": 1,
    "expansion": 1,
    "forward_dtype": "float32",
}
CONFIGS = {
    "HRM": hrm.HRMConfig(**SIZES, H_layers=1, L_layers=1),
    "TRM": hrm.TRMConfig(**SIZES, L_layers=1),
    "EqR": hrm.EqRConfig(**SIZES, L_layers=1),
    "URM": hrm.URMConfig(**SIZES, num_layers=1),
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with local_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", "local")
        yield hub


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def written(model, folder, **options):
    model.save_pretrained(folder, **options)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_family_is_saved_and_loaded(kind, tmp_path):
    model = build(CONFIGS[kind])
    files = written(model, tmp_path / "model")
    assert files.keys() == {"config.json", "model.safetensors", "README.md"}
    for loads in (getattr(hrm, kind), hrm.HRM):
        again = loads.from_pretrained(tmp_path / "model", forward_dtype="float32")
        assert type(again).__name__ == kind and same(again, model) and not again.training


def test_another_class_is_refused(tmp_path):
    build(CONFIGS["URM"]).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="holds a model of class URM, not TRM; use hrm.URM.from_pretrained"):
        hrm.TRM.from_pretrained(tmp_path / "model")


def test_existing_files_stay_or_are_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    first, second = (build(CONFIGS["HRM"]) for _ in range(2))
    first.save_pretrained(tmp_path, task="sudoku")
    second.save_pretrained(tmp_path, task="sudoku")
    assert same(hrm.load(tmp_path), second) and not same(first, second)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_shipped_models_card_has_its_data_recipe_and_results(tmp_path):
    model = hrm.HRM.from_pretrained("sudoku4")
    files = written(model, tmp_path / "model", source="sudoku4")
    text, config = files["README.md"].decode(), json.loads(files["config.json"])
    assert config["task"] == "sudoku" and json.loads(files["halting.json"])["threshold"]
    head = text.split("---\n")[1]
    assert "library_name: hrm" in head and "- sudoku\n" in head and "license: apache-2.0" in head
    (card,) = (card for card in hrm.models.cards() if card.name == "sudoku4")
    for part in (card.data, f"hrm train {card.recipe}", f"{card.accuracy[0].exact_accuracy:.1%}", card.example):
        assert part in text
    with pytest.raises(InputError, match="a local model, which has no revision 'main'"):
        hrm.HRM.from_pretrained("sudoku4", revision="main")


def test_a_model_is_pushed_and_loaded_at_its_revision(hub, tmp_path, monkeypatch):
    first, second = (build(CONFIGS["TRM"]) for _ in range(2))
    card = ModelCard("tiny", "It solves nothing.", results=(Result("none", "exact accuracy", "0.0%"),))
    address = first.push_to_hub("owner/tiny", card=card, task="sudoku", commit_message="first")
    pinned = hub.find("owner/tiny", "main")
    assert address == f"{hub.url}/owner/tiny/commit/{pinned}"
    assert {"README.md", "config.json", "model.safetensors"} < hub.commits[pinned].keys()
    assert b"| none | exact accuracy | 0.0% |" in hub.commits[pinned]["README.md"]
    second.push_to_hub("owner/tiny", task="sudoku")

    assert same(hrm.TRM.from_pretrained("owner/tiny"), second)
    assert same(hrm.TRM.from_pretrained("owner/tiny", revision=pinned), first)
    assert same(hrm.load("owner/tiny"), second)

    hub.requests.clear()  # a pinned commit that is in the cache needs no hub, and no other one is asked
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same(hrm.TRM.from_pretrained("owner/tiny", revision=pinned), first)
    assert same(hrm.HRM.from_pretrained("owner/tiny", local_files_only=True), second)
    assert not hub.requests
    with pytest.raises(InputError, match="owner/tiny at revision v2 is neither a local path nor available"):
        hrm.HRM.from_pretrained("owner/tiny", revision="v2")


def test_errors_of_the_hub_are_named(hub, monkeypatch):
    with pytest.raises(InputError, match="owner/none is neither a local path nor available from the hub"):
        hrm.HRM.from_pretrained("owner/none")
    with pytest.raises(InputError, match="a name with spaces cannot be pushed to the hub"):
        build(CONFIGS["HRM"]).push_to_hub("a name with spaces")
