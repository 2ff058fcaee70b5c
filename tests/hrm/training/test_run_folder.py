"""The folder of a run: free, or locked by the run that uses it."""

import fcntl
import os

import pytest

from hrm.errors import InputError
from hrm.training import state as state_module
from hrm.training.trainer import Trainer, train


def test_two_runs_do_not_share_a_folder(configure, cpu):
    """A killed run does not keep the lock."""
    config = configure(max_steps=2)
    run = Trainer(config, cpu)
    with pytest.raises(InputError, match="is not empty"):
        Trainer(config, cpu)
    again = config.model_copy(update={"resume": True})
    for _ in range(2):  # before its first checkpoint, and after it
        with pytest.raises(InputError, match=f"another run is training in {config.out}; wait until it ends"):
            train(again, cpu)
        run.train_step()
        run.save()
    os.close(run._folder._lock._descriptor)  # as the system does when a process ends
    assert train(again.model_copy(update={"max_steps": 3}), cpu).step == 3
    with (config.out / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released


def test_a_folder_with_only_a_lock_is_free(configure, cpu, monkeypatch):
    """A second run that starts at the same moment is refused, although the folder was free when both checked."""
    config = configure(max_steps=1)
    config.out.mkdir()
    (config.out / ".lock").touch()
    real, second = state_module.build, []

    def build(*arguments):
        if not second:
            second.append(None)
            second[0] = Trainer(config, cpu)
        return real(*arguments)

    monkeypatch.setattr(state_module, "build", build)
    with pytest.raises(InputError, match="another run is training in"):
        Trainer(config, cpu)
    assert second[0].run().step == 1
    second[0].close()
