"""Commands of earlier versions: the error shows the command of today."""

import shlex

import pytest

from hrm.cli.old_spellings import new_spelling


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("hrm eval demo/run data=demo/data", "hrm eval demo/run --data demo/data"),
        ("hrm eval m data=d halt=q --json", "hrm eval m --data d --halt q --json"),
        ("hrm eval m --data d halt=q", "hrm eval m --data d --halt q"),
        ("hrm eval m data=d data=e", "hrm eval m --data d --data e"),
        ("hrm eval m 'data=my data'", "hrm eval m --data 'my data'"),
        (
            "hrm eval m data=d scale=segments:8,16 rollouts=1,4 --out o",
            "hrm scale m --data d --segments 8,16 --trajectories 1,4 --out o",
        ),
        ("hrm eval m data=d rollouts=4 --max-steps 2", "hrm scale m --data d --trajectories 4 --segments 2"),
        (
            "hrm eval m data=d rollouts=4 augment=false noise=0.5 seed=1",
            "hrm scale m --data d --trajectories 4 --start-noise 0.5 --seed 1",
        ),
        ("hrm eval m data=d rollouts=4 augment=true", "hrm scale m --data d --trajectories 4 --augment"),
        ("hrm scale m --data d --rollouts 4", "hrm scale m --data d --trajectories 4"),
        (
            "hrm adapt m data=d out=o steps=9 batch_size=4 lr=0.1 weight_decay=0 init=zero seed=1",
            "hrm adapt m --data d --out o --steps 9 --batch-size 4 --lr 0.1 --weight-decay 0 --init zero --seed 1",
        ),
        ("hrm calibrate m data=d loss=0.01 out=o", "hrm calibrate m --data d --loss 0.01 --out o"),
        (
            "hrm analyze m data=d puzzles=9 boards=2 baselines=0 seed=1 --out o",
            "hrm analyze m --data d --puzzles 9 --boards 2 --baseline-steps 0 --seed 1 --out o",
        ),
        (
            "hrm data sudoku --csv d --subsample 9 --test-subsample=5 --out o",
            "hrm data sudoku --csv d --train 9 --test 5 --out o",
        ),
    ],
)
def test_old_commands_show_the_new_one(call, old, new):
    code, out, err = call(*shlex.split(old)[1:])
    assert (code, out, err) == (2, "", f"hrm: this is the spelling of an earlier version; type: {new}\n")


@pytest.mark.parametrize(
    "arguments",
    ["", "train demo data=d out=o", "eval m --data d", "eval m --out=o dta=x", "doctor data=d", "solve m a=b"],
)
def test_other_commands_have_no_old_spelling(arguments):
    assert new_spelling(arguments.split()) is None
