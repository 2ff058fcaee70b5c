"""The server of hrm play."""

import json
import threading
from http.client import HTTPConnection

import numpy as np
import pytest

import hrm
from hrm.api import task_of_model
from hrm.data.sudoku import Sudoku
from hrm.errors import InputError
from hrm.inference.engine import Engine, Puzzle
from hrm.play.catalogue import page_model, unique_names
from hrm.play.server import Played, PlayServer

EXAMPLE = "..1.3.......12.."


@pytest.fixture(scope="module")
def server():
    model = hrm.load("sudoku4")
    with PlayServer(("127.0.0.1", 0), [Played(model, page_model(model, Sudoku(4), "sudoku4"))]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, method, path, body=None, **headers):
    connection = HTTPConnection(*server.server_address)
    named = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, None if body is None else json.dumps(body), named)
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_it_streams_the_engines_segments(server):
    tokens = Sudoku(4).parse(EXAMPLE)
    status, text = ask(server, "POST", "/think", {"model": "sudoku4", "rows": [tokens.tolist()] * 2, "segments": 3})
    assert status == 200
    lines = [json.loads(line) for line in text.splitlines()]
    with Engine(server.played["sudoku4"].model, 1, 3, halt="residual:1e-12") as engine:
        (result,) = engine.solve([Puzzle(tokens)], trace=True)
    for line, frame in zip(lines, result.trace, strict=True):
        assert line["tokens"] == [frame.tokens.tolist()] * 2
        for name, value in (("qHalt", frame.q_halt), ("qContinue", frame.q_continue), ("residual", frame.residual)):
            np.testing.assert_allclose(line[name], [value] * 2, rtol=1e-5, atol=1e-6)


def test_it_serves_the_page_and_the_models(server):
    status, page = ask(server, "GET", "/")
    assert status == 200 and "Watch it think" in page
    assert ask(server, "GET", "/app.js")[0] == 200
    status, text = ask(server, "GET", "/models.json")
    (about,) = json.loads(text)["models"]
    assert about["title"] == "sudoku4 (4 × 4 Sudoku)" and about["box"] == [2, 2]
    assert about["calibrated"].keys() == {"rule", "threshold"} and len(about["example"]) == 16
    for path in ("/server.py", "/../server.py", "/%2e%2e/server.py"):
        assert ask(server, "GET", path)[0] == 404


def test_it_refuses_other_hosts_and_bad_requests(server):
    assert ask(server, "GET", "/", Host="example.org:80")[0] == 403
    good = {"model": "sudoku4", "rows": [[1] * 16], "segments": 1}
    assert ask(server, "POST", "/think", good, Content_Type="text/plain")[0] == 404
    for change, message in (
        ({"model": "other"}, "model is 'other', expected one of sudoku4"),
        ({"segments": 0}, "segments is 0, expected 1 to 256"),
        ({"rows": [[1] * 15]}, "[n, 16] with n from 1 to 64"),
        ({"rows": [[1] * 15 + [6]]}, "expected tokens below 6"),
        ({"rows": [[1], [1, 2]]}, "[n, 16] with n from 1 to 64"),
        ({"rows": []}, "[n, 16] with n from 1 to 64"),
    ):
        status, text = ask(server, "POST", "/think", good | change)
        assert status == 400 and message in text


def test_other_tasks_are_refused():
    model = hrm.load("sudoku4")
    with pytest.raises(InputError, match="m has no known task; the page shows models of Sudoku and of mazes"):
        page_model(model, None, "m")
    assert task_of_model("sudoku4", model) == Sudoku(4)
    assert unique_names(["runs/a", "b", "other/a"]) == ["a", "b", "a 2"]
