"""Adapting a model to unseen puzzles."""

import pytest
import torch

import hrm
from hrm.data.format import open_dataset
from hrm.errors import InputError
from hrm.training.adapt import adapt


def trained_elsewhere(configure, dataset) -> hrm.HRM:
    """A model whose weights, with the puzzle embedding, are random."""
    torch.manual_seed(0)
    model = hrm.HRM(configure().model(dataset.metadata, torch.device("cpu")))
    model.inner.puzzle_emb.weights.normal_()
    return model.eval()


def test_adapting_changes_only_the_embeddings(configure, data):
    dataset = open_dataset(data, "train")
    model = trained_elsewhere(configure, dataset)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = adapt(model, dataset, steps=150, batch_size=10, lr=0.05)
    assert done.loss_after < done.loss_before
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"inner.puzzle_emb.weights"}
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())
    again = trained_elsewhere(configure, dataset)
    assert adapt(again, dataset, steps=150, batch_size=10, lr=0.05) == done
    assert torch.equal(again.inner.puzzle_emb.weights, model.inner.puzzle_emb.weights)
    with pytest.raises(InputError, match="steps is 0"):
        adapt(model, dataset, steps=0)


@pytest.mark.parametrize("init", ["mean", "zero"])
def test_new_puzzles_start_with_the_mean_or_zero_and_the_blank_row_stays(configure, data, init):
    dataset = open_dataset(data, "train")
    model = trained_elsewhere(configure, dataset)
    rows = model.inner.puzzle_emb.weights.clone()
    adapt(model, dataset, steps=1, batch_size=4, lr=1e-9, weight_decay=0, init=init)
    expected = rows.mean(0).expand_as(rows).clone() if init == "mean" else torch.zeros_like(rows)
    expected[0] = rows[0]  # the blank identifier
    torch.testing.assert_close(model.inner.puzzle_emb.weights, expected)
