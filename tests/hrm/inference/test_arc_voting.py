import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from hrm.data.arc import encode
from hrm.errors import InputError
from hrm.inference.arc_voting import ArcVotes

GOLDEN = json.loads((Path(__file__).parents[2] / "data" / "arc_cases.json").read_text())


def counted(predictions):
    votes = ArcVotes(GOLDEN["tasks"])
    if predictions:
        votes.add(
            [GOLDEN["identifiers"][one["puzzle_identifier"]] for one in predictions],
            np.array([one["input"] for one in predictions], np.uint8),
            np.array([one["pred"] for one in predictions]),
            np.array([one["q_halt_logit"] for one in predictions], np.float32),
        )
    return votes


def check_golden(votes):
    assert {f"ARC/pass@{k}": share for k, share in votes.pass_at().items()} == GOLDEN["scores"]
    assert votes.submission() == GOLDEN["submission"]
    assert json.loads(json.dumps(votes.submission())) == GOLDEN["submission"]


def test_golden_scores_and_submission():
    votes = counted(GOLDEN["predictions"])
    check_golden(votes)
    assert votes.unmatched == 0
    # the attempts are the first two of the ranked answers
    for name, tests in votes.ranked().items():
        assert [grid.tolist() for grid in tests[0][:2]] == list(GOLDEN["submission"][name][0].values())


@pytest.mark.parametrize("processes", [2, 3])
def test_golden_over_several_processes(processes):
    shares = [counted(GOLDEN["predictions"][rank::processes]) for rank in range(processes)]
    whole = shares[0]
    for share in shares[1:]:
        whole.merge(pickle.loads(pickle.dumps(share)))
    check_golden(whole)


def test_golden_one_by_one():
    votes = counted([])
    for prediction in GOLDEN["predictions"]:
        votes.merge(counted([prediction]))
    check_golden(votes)


TASKS = {
    "a": {"train": [{"input": [[0]], "output": [[0]]}], "test": [{"input": [[1]], "output": [[2]]}]},
    "b": {
        "train": [{"input": [[0]], "output": [[0]]}],
        "test": [{"input": [[3, 4]], "output": [[5]]}, {"input": [[6]], "output": [[7]]}],
    },
}


def vote(votes, name, question, answer, q=0.0):
    tokens = [
        encode(np.array(grid, np.uint8)[None]) if grid else np.zeros((1, 900), np.uint8) for grid in (question, answer)
    ]
    votes.add([name], *tokens, np.array([q]))


def as_lists(ranked):
    return {task: [[grid.tolist() for grid in grids] for grids in tests] for task, tests in ranked.items()}


def test_order_is_by_votes_then_by_mean_q():
    votes = ArcVotes(TASKS)
    for answer, q in [([[8]], 9.0), ([[2]], -1.0), ([[2]], -2.0), ([[9]], 2.0), ([[9]], -9.0), ([[7]], 9.5)]:
        vote(votes, "a", [[1]], answer, q)
    # Two votes each for 2 (mean q 0.19) and 9 (0.44), then one each for 7 and 8.
    assert as_lists(votes.ranked())["a"] == [[[[9]], [[2]], [[7]], [[8]]]]
    assert as_lists(votes.ranked(1))["a"] == [[[[9]]]]
    assert votes.pass_at([1, 2, 3]) == {1: 0.0, 2: 0.5, 3: 0.5}


def test_augmented_predictions_count_for_their_original():
    votes = ArcVotes(TASKS)
    # t4 mirrors left and right, and colours 3, 4, 5, 8 become 4, 5, 3, 1.
    name = "b|||t4|||0824537619"
    vote(votes, name, [[5, 4]], [[3, 3, 1]])
    vote(votes, "b", [[3, 4]], [[8, 5, 5]])
    assert as_lists(votes.ranked())["b"] == [[[[8, 5, 5]]], []]
    assert votes.pass_at([1]) == {1: 0.0}
    vote(votes, "b", [[6]], [[7]])
    assert votes.pass_at([1]) == {1: 0.25}, "half of the tests of one of two tasks"


def test_a_transposed_grid_of_equal_cells_is_another_grid():
    votes = ArcVotes(TASKS)
    vote(votes, "a", [[1]], [[2, 2]])
    vote(votes, "a", [[1]], [[2], [2]])
    assert len(votes.ranked()["a"][0]) == 2


def test_predictions_for_other_inputs_do_not_vote():
    votes = ArcVotes(TASKS)
    vote(votes, "a", [[9]], [[2]])
    vote(votes, "<blank>", [], [])
    vote(votes, "a|||t0|||0123456789", [[6]], [[2]])
    assert votes.unmatched == 3 and votes.ranked() == {"a": [[]], "b": [[], []]}


def test_every_test_input_has_attempts():
    votes = ArcVotes(TASKS)
    vote(votes, "b", [[6]], [])
    vote(votes, "b", [[6]], [[7]], -1.0)
    submission = votes.submission(3)
    assert submission["a"] == [{"attempt_1": [[0]], "attempt_2": [[0]], "attempt_3": [[0]]}]
    assert submission["b"][0] == submission["a"][0]
    assert submission["b"][1] == {"attempt_1": [[0]], "attempt_2": [[7]], "attempt_3": [[0]]}


def test_tests_without_a_solution_are_left_out_of_the_scores():
    tasks = json.loads(json.dumps(TASKS))
    del tasks["a"]["test"][0]["output"], tasks["b"]["test"][0]["output"]
    votes = ArcVotes(tasks)
    vote(votes, "b", [[6]], [[7]])
    vote(votes, "a", [[1]], [[2]])
    assert votes.pass_at([1]) == {1: 1.0}
    assert votes.submission()["a"] == [{"attempt_1": [[2]], "attempt_2": [[2]]}]
    del tasks["b"]
    assert ArcVotes(tasks).pass_at() == {}


def test_extreme_q_values():
    votes = ArcVotes(TASKS)
    with np.errstate(over="raise", invalid="raise"):
        for answer, q in [([[1]], -1e30), ([[2]], 1e30), ([[3]], np.nan), ([[4]], 0.0)]:
            vote(votes, "a", [[1]], answer, q)
    assert as_lists(votes.ranked())["a"] == [[[[2]], [[4]], [[1]], [[3]]]]


def test_bad_input_is_refused():
    votes = ArcVotes(TASKS)
    with pytest.raises(ValueError, match=r"inputs \[1, 81\].* for 1 names, expected \[1, 900\] twice and \[1\]"):
        votes.add(["a"], np.zeros((1, 81)), np.zeros((1, 900)), np.zeros(1))
    with pytest.raises(InputError, match="is not the name of an augmented task"):
        vote(votes, "a|||t9|||0123456789", [[1]], [[1]])
    with pytest.raises(ValueError, match="different tasks"):
        votes.merge(ArcVotes({"a": TASKS["a"]}))
    with pytest.raises(InputError, match="test_puzzles.json: task a has no 'train'"):
        ArcVotes({"a": {}})
    with pytest.raises(InputError, match="test_puzzles.json: expected an object of tasks by name"):
        ArcVotes([])
