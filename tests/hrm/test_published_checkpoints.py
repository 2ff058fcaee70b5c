"""Checkpoints as the published codes of TRM, EqR and URM write them, in stand-in folders."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import yaml

import hrm

SIZES = {"H_cycles": 2, "L_cycles": 2, "hidden_size": 32, "num_heads": 2, "expansion": 0.5, "rms_norm_eps": 1e-5}
ARCH = {"halt_exploration_prob": 0.1, "halt_max_steps": 16, "forward_dtype": "bfloat16"}
EQR = SIZES | ARCH | {
    "name": "eqr@EqRModel", "short_name": "EqR", "loss": {"name": "losses@ACTLossHead"}, "H_layers": 0, "L_layers": 1,
    "pos_encodings": "rope2d", "board_height": 2, "board_width": 3, "mlp_t": False, "lambda_": 0.9, "noise_scale": 0.02,
    "H_init_std": 1.0, "L_init_std": 0.5,
}  # fmt: skip
URM = SIZES | {
    "name": "urm.urm@URM", "loss": {"name": "losses@ACTLossHead"}, "loops": 8, "num_layers": 2, "loop_deltas": [0, 8],
    "puzzle_emb_ndim": "${.hidden_size}", "pos_encodings": "rope", "profile": True,
}  # fmt: skip


@dataclass
class ModelCarry:
    """Stands for the class of the published code, which this process does not have."""

    z_H: torch.Tensor


def eqr_model(**values):
    torch.manual_seed(0)
    ours = {name: value for name, value in (EQR | values).items() if name in hrm.EqRConfig.model_fields}
    return hrm.EqR(hrm.EqRConfig.parse(ours | {"seq_len": 6, "vocab_size": 7, "forward_dtype": "float32"}))


def equal(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def write_eqr(folder, model, arch, averages):
    """With what a training of EqR keeps: random states, a carry of a class of its own, NumPy arrays."""
    state = {f"model._orig_mod.{name}": value for name, value in model.state_dict().items()}
    checkpoint = {
        "step": 7, "model": state, "optimizers": [{"state": {}, "param_groups": [{"lr": 1e-4}]}],
        "carry": ModelCarry(torch.zeros(2)), "rng": {"torch": torch.random.get_rng_state(), "cuda": None},
        "numpy": np.random.RandomState(0).get_state(), "config": {"arch": arch, "global_batch_size": 768},
        "ema": {"mu": 0.999, "shadow": {f"model._orig_mod.{name}": value for name, value in averages.items()}},
    }  # fmt: skip
    torch.save(checkpoint, folder / "eqr.pth")


@pytest.mark.parametrize("values", [{}, {"mlp_t": True, "pos_encodings": "rope"}])
def test_eqr_with_trained_and_averaged_weights_and_the_configuration_inside(values, tmp_path):
    model = eqr_model(**values | ({"pos_encodings": "none"} if values else {}))
    averages = {name: value + 1 for name, value in model.named_parameters()}
    write_eqr(tmp_path, model, EQR | values, {name: value.detach() for name, value in averages.items()})
    for path in (tmp_path, tmp_path / "eqr.pth"):
        loaded = hrm.load(path, forward_dtype="float32")
        assert type(loaded) is hrm.EqR and equal(loaded, averages)
        assert loaded.config == model.config
    assert equal(hrm.load(tmp_path, weights="model"), model.state_dict())
    assert equal(hrm.load(tmp_path, weights="ema"), averages)


def test_objects_of_a_training_are_not_made(tmp_path, capsys):
    model = eqr_model()
    write_eqr(tmp_path, model, EQR, {})

    class Evil:
        def __reduce__(self):
            return print, ("code ran",)

    checkpoint = torch.load(tmp_path / "eqr.pth", weights_only=False)
    torch.save(checkpoint | {"carry": Evil()}, tmp_path / "eqr.pth")
    assert equal(hrm.load(tmp_path), model.state_dict())
    torch.save(checkpoint | {"model": {"inner.lm_head.weight": Evil()}}, tmp_path / "eqr.pth")
    with pytest.raises(hrm.InputError, match="is refused: its pickle holds more than tensors"):
        hrm.load(tmp_path)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("file", ["all_config.yaml", "config.yaml", ".hydra/config.yaml"])
def test_urm_beside_its_optimizers(file, tmp_path):
    torch.manual_seed(0)
    ours = {name: value for name, value in URM.items() if name in hrm.URMConfig.model_fields}
    sizes = {"seq_len": 81, "vocab_size": 11, "num_puzzle_identifiers": 3, "puzzle_emb_ndim": 32, "halt_max_steps": 8}
    model = hrm.URM(hrm.URMConfig.parse(ours | sizes | {"forward_dtype": "float32"}))
    torch.nn.init.normal_(model.puzzle_emb.weights)
    state = {f"_orig_mod.model.{name}": value for name, value in model.state_dict().items()}
    for name in state:
        if "dwconv" in name:  # as published
            state[name] = state[name].bfloat16()
    state["_orig_mod.model.inner.puzzle_emb.local_ids"] = torch.zeros(4, dtype=torch.int32)
    checkpoint = {"step": 9, "model_state_dict": state, "optimizer_states": [{}], "rng_state": torch.get_rng_state()}
    torch.save(checkpoint, tmp_path / "step_9.pt")
    torch.save(checkpoint | {"model_state_dict": {}}, tmp_path / "step_8.pt")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(yaml.safe_dump({"arch": URM, "ema": True}))
    loaded = hrm.load(tmp_path, forward_dtype="float32")
    assert type(loaded) is hrm.URM and loaded.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float() if "dwconv" in name else value), name


def test_a_trm_of_eqrs_code_has_no_puzzle_embedding(tmp_path):
    torch.manual_seed(0)
    arch = {
        name: value for name, value in EQR.items() if name not in ("lambda_", "noise_scale", "H_init_std", "L_init_std")
    }
    arch |= {"name": "trm@TRMModel", "no_ACT_continue": True}
    ours = {name: value for name, value in arch.items() if name in hrm.TRMConfig.model_fields}
    model = hrm.TRM(hrm.TRMConfig.parse(ours | {"seq_len": 6, "vocab_size": 7, "forward_dtype": "float32"}))
    torch.save({"model": model.state_dict(), "config": {"arch": arch}}, tmp_path / "trm.pth")
    loaded = hrm.load(tmp_path, forward_dtype="float32")
    assert type(loaded) is hrm.TRM and loaded.config == model.config and equal(loaded, model.state_dict())
    with pytest.raises(hrm.InputError, match="has no averaged weights beside others; load it with weights=auto"):
        hrm.load(tmp_path, weights="ema")


def test_a_checkpoint_without_a_configuration(tmp_path):
    torch.save({"model": {}}, tmp_path / "eqr.pth")
    with pytest.raises(hrm.InputError, match="has no configuration beside it; expected all_config.yaml or config.yaml"):
        hrm.load(tmp_path)


def test_a_folder_of_a_hub_model(tmp_path, monkeypatch):
    model = eqr_model()
    (tmp_path / "sudoku-extreme").mkdir()
    write_eqr(tmp_path / "sudoku-extreme", model, EQR, {})
    names = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: names.append(name) or str(tmp_path))
    assert equal(hrm.load("locuslab/EqR-model/sudoku-extreme"), model.state_dict())
    assert names == ["locuslab/EqR-model"]
