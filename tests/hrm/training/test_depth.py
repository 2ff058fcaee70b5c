"""The depth curriculum: fewer cycles early in training, and less weight on the loss of later segments."""

import json

import pytest
import torch
from runs import assert_same, contents, rows
from torch import nn

import hrm
from hrm.errors import InputError
from hrm.training import trainer as trainer_module
from hrm.training.checkpoint import open_newest
from hrm.training.config import load_config
from hrm.training.schedule import DepthSchedule, DepthStage
from hrm.training.trainer import Trainer, train

FAMILIES = {
    "hrm": {},
    "trm": {"family": "trm", "ema": True},
    "mixing": {"family": "trm", "arch": {"mlp_t": True, "pos_encodings": "none", "no_ACT_continue": False}},
    "eqr": {"family": "eqr", "arch": {"puzzle_emb_ndim": 0}},
    "urm": {"family": "urm"},
    "full gradient": {"gradient_warmup": 4, "arch": {"gradient": "full"}},
}
FULL = {"H_cycles": 2, "L_cycles": 3}


def with_arch(changes: dict, **arch) -> dict:
    return changes | {"arch": changes.get("arch", {}) | arch}


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES)
def test_a_stage_trains_the_model_of_its_depth(configure, cpu, changes):
    """To the bit: the first stage is a run of a shallow model, and what follows is a step of the deep one."""
    stages = [{"until": 3, "H_cycles": 1, "L_cycles": 2}]
    deep = with_arch(changes, **FULL)
    run = train(configure("stages", max_steps=3, depth=stages, **deep), cpu)
    shallow = train(configure("shallow", max_steps=3, **with_arch(changes, H_cycles=1, L_cycles=2)), cpu)
    assert_same(contents(run.checkpoint), contents(shallow.checkpoint))
    assert json.loads((run.checkpoint / "config.json").read_text())["model"].items() >= FULL.items()

    resumed = train(configure("stages", max_steps=4, resume=True, depth=stages, **deep), cpu)
    by_hand = Trainer(configure("deep", max_steps=4, **deep), cpu)
    by_hand.state.load(open_newest(shallow.checkpoint.parents[1]), cpu)
    by_hand.sums.load(open_newest(shallow.checkpoint.parents[1]), cpu)
    by_hand.train_step()
    by_hand.log(last=True)
    by_hand.save()
    by_hand.close()
    assert_same(contents(resumed.checkpoint), contents(by_hand.config.out / "checkpoints/step_00000004"))
    whole = train(configure("whole", max_steps=4, depth=stages, **deep), cpu)
    assert_same(contents(whole.checkpoint), contents(resumed.checkpoint))
    assert contents(whole.checkpoint)["depth"] == FULL


def test_logs_name_the_depth_and_evaluations_have_all_of_it(configure, cpu, monkeypatch):
    real, seen = trainer_module.evaluate, []

    def evaluate(model, *args, **kwargs):
        seen.append((model.config.H_cycles, model.inner.config.L_cycles))
        return real(model, *args, **kwargs)

    monkeypatch.setattr(trainer_module, "evaluate", evaluate)
    stages = [{"until": 0.2, "H_cycles": 1, "L_cycles": 2}, {"until": 0.5, "H_cycles": 2, "L_cycles": 2}]
    changes = {"epochs": 2, "log_every": 1, "eval_interval": 1, "eval_max_examples": 3}
    config = configure(depth=stages, arch=FULL, **changes)
    total = train(config, cpu).step  # 24 groups of about 1.5 examples, twice, in batches of 8
    depths = [(int(row["H_cycles"]), int(row["L_cycles"])) for row in rows(config.out / "metrics.csv")]
    first, second = round(0.2 * total), round(0.5 * total)
    assert 1 <= first < second < total
    assert depths == first * [(1, 2)] + (second - first) * [(2, 2)] + (total - second) * [(2, 3)]
    assert len(seen) >= 2 and set(seen) == {(2, 3)}
    assert "H_cycles" not in rows(train(configure("plain", max_steps=2), cpu).checkpoint.parents[1] / "metrics.csv")[0]


@pytest.mark.slow
def test_a_compiled_step_follows_the_depth(configure, cpu, monkeypatch):
    """Compiled by a backend that changes no bit."""
    stages = [{"until": 1, "H_cycles": 1, "L_cycles": 1}]
    changes = {"max_steps": 2, "depth": stages, "loss_decay": 0.5, "family": "trm"}
    plain = train(configure("plain", **changes), cpu)
    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: real(self, backend="eager", **options))
    compiled = train(configure("compiled", compile=True, **changes), cpu)
    for name, tensor in contents(plain.checkpoint).items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(contents(compiled.checkpoint)[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert contents(compiled.checkpoint)["depth"] == {"H_cycles": 2, "L_cycles": 1}


def test_the_weight_of_a_rows_loss_falls_with_its_segment():
    sizes = {"hidden_size": 16, "num_heads": 2, "H_layers": 1, "L_layers": 1, "forward_dtype": "float32"}
    model = hrm.HRM(hrm.HRMConfig(seq_len=4, vocab_size=5, **sizes)).train()
    batch = {"inputs": torch.randint(1, 5, (3, 4)), "puzzle_identifiers": torch.zeros(3, dtype=torch.int32)}
    batch["labels"] = batch["inputs"]
    carry, outputs = model(model.initial_carry(batch), batch)
    carry.steps = torch.tensor([1, 2, 4], dtype=torch.int32)

    def row(index: int) -> torch.Tensor:
        """The loss of one row."""
        one = hrm.Carry(*(tensor[index : index + 1] for tensor in (carry.z_H, carry.z_L, carry.steps, carry.halted)), {
            name: values[index : index + 1] for name, values in carry.current_data.items()
        })  # fmt: skip
        return hrm.act_loss(one, {name: values[index : index + 1] for name, values in outputs.items()})[0]

    loss, metrics = hrm.act_loss(carry, outputs, decay=0.5)
    torch.testing.assert_close(loss, row(0) + 0.5 * row(1) + 0.125 * row(2))
    plain, unweighted = hrm.act_loss(carry, outputs)
    torch.testing.assert_close(plain, row(0) + row(1) + row(2))
    assert all(torch.equal(value, unweighted[name]) for name, value in metrics.items())


def test_stages_are_read_and_checked(configure, cpu, tmp_path):
    written = "depth=[{until: 0.3, H_cycles: 1, L_cycles: 2}, {until: 600, H_cycles: 2, L_cycles: 4}]"
    config = load_config("trm-sudoku-extreme-1k", ["data=x", written])
    assert config.depth == (
        DepthStage(until=0.3, H_cycles=1, L_cycles=2),
        DepthStage(until=600, H_cycles=2, L_cycles=4),
    )
    for wrong, message in (
        ("depth=[{until: 1.5, H_cycles: 1, L_cycles: 2}]", "depth.0.until"),
        ("depth=[{until: 0, H_cycles: 1, L_cycles: 2}]", "depth.0.until"),
        ("depth=[{until: 3, H_cycles: 0, L_cycles: 2}]", "depth.0.H_cycles"),
        ("depth=[{until: 3, H_cycles: 1, L_cycle: 2}]", "depth.0.L_cycle"),
        ("loss_decay=0", "loss_decay"),
    ):
        with pytest.raises(InputError, match=message):
            load_config("trm-sudoku-extreme-1k", ["data=x", wrong])
    model = hrm.TRMConfig(seq_len=4, vocab_size=5)
    with pytest.raises(InputError, match=r"depth: the stages end at steps \[600, 300\], expected .* ascending order"):
        DepthSchedule(config.depth[::-1], model, 1000)
    with pytest.raises(InputError, match=r"ascending order"):
        train(configure(depth=[stage.model_dump() for stage in config.depth[::-1]]), cpu)
    assert not (tmp_path / "run/training.json").exists()
