"""The page of hrm play in a real browser, with a server and without: Chromium, driven by playwright-core.

``HRM_TEST_SHOTS=DIR`` keeps the screenshots.
"""

import functools
import json
import os
import shutil
import subprocess
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import hrm
from hrm.data.sudoku import Sudoku
from hrm.export.folder import Examples, examples_of
from hrm.play.catalogue import page_model
from hrm.play.server import Played, PlayServer

pytestmark = pytest.mark.slow
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def playwright(tmp_path_factory):
    """The folder of playwright-core, from npm."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("Node.js and npm are not installed, which drive the browser")
    folder = tmp_path_factory.mktemp("npm")
    command = [npm, "install", "--silent", "--no-audit", "--no-fund", "playwright-core"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm cannot install playwright-core: {done.stderr.strip()[:200]}")
    return folder / "node_modules" / "playwright-core"


@contextmanager
def running(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def with_server(model, task, name, tmp_path):
    about = page_model(model, task, name)
    with running(PlayServer(("127.0.0.1", 0), [Played(model, about)])) as url:
        yield url


@contextmanager
def without_server(model, task, name, tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install 'hrm[export]')")
    from hrm.export.web import export_web

    some = examples_of(model, task, 8)
    examples = Examples(some.inputs, some.labels, some.identifiers, some.source)
    exported = export_web(model, tmp_path / "web", task=task, name=name, examples=examples)
    assert exported.compared.equal_tokens == 1
    files = {str(file.relative_to(tmp_path / "web")) for file in (tmp_path / "web").rglob("*") if file.is_file()}
    assert {"index.html", "app.js", "segment.onnx", "models.json", "ort/ort.wasm.min.mjs"} < files

    class Quiet(SimpleHTTPRequestHandler):
        extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}

        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=tmp_path / "web")
    with running(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as url:
        yield url


NEWSPAPER = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"


@pytest.mark.parametrize("size, host", [(6, with_server), (6, without_server), (9, with_server), (9, without_server)])
def test_a_sudoku_is_solved_in_the_browser(size, host, playwright, tmp_path):
    name, task = f"sudoku{size}", Sudoku(size)
    model = hrm.load(name, forward_dtype="float32")
    puzzle = NEWSPAPER if size == 9 else task.format(examples_of(model, task).inputs[3])
    solution = hrm.solve(model, puzzle, task=task)
    shots = Path(os.environ.get("HRM_TEST_SHOTS", tmp_path), f"{name}_{host.__name__}")
    shots.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("visit.cjs")
    with host(model, task, name, tmp_path) as url:
        asked = {
            "url": url,
            "playwright": str(playwright),
            "chromium": CHROMIUM,
            "shots": str(shots),
            "puzzle": puzzle,
            "impossible": "11" + "." * (size**2 - 2),
        }
        command = ["node", str(script), json.dumps(asked)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)

    assert seen["hosts"] == [url.split("/")[2]] and not seen["errors"]  # nothing comes from elsewhere
    assert seen["title"] == f"{name} ({size} × {size} Sudoku)"

    keys = seen["keys"]
    assert keys["typed"] == keys["atHome"] == keys["back"] == puzzle
    assert keys["answer"] == keys["atEnd"] == task.format(solution.answer)
    assert keys["segments"] == solution.steps and keys["first"] == first_answer(model, task, puzzle)
    assert keys["changed"] == solution.changed(len(solution.frames) - 1).sum()
    assert solution.valid and keys["verdict"].startswith("Solved. The answer is valid.")

    mouse = seen["mouse"]
    assert mouse["tooShort"].startswith(f"This has 2 cells; a {size} × {size} Sudoku has {size**2}.")
    assert mouse["impossible"] == "This board has no solution: row 1 has 1 twice."
    assert mouse["wrong"] == [0, 1] and mouse["disabled"]
    assert mouse["segments"] == 3 and mouse["current"] == 1 and len(mouse["choices"]) == 4
    valid = mouse["choices"].count("valid")  # sudoku9 needs more than three segments for its example
    assert f"{valid} of 4 attempts are valid" in mouse["attempts"] and (valid == 4 or size == 9)

    phone = seen["phone"]
    assert phone["width"] <= 360 and phone["verdict"].startswith("Solved")
    finger = 40 if size == 6 else 33  # nine cells side by side are as wide as the screen lets them
    for width, height, bottom in phone["cells"]:  # large enough for a finger, square, and none is cut off
        assert width >= finger and abs(width - height) <= 2 and bottom <= phone["bottom"]
    for scheme in ("light", "dark"):  # WCAG's AA for text
        assert seen[scheme][0] >= 4.5, f"{scheme}: contrast of {seen[scheme][1]} is {seen[scheme][0]:.2f}"


def first_answer(model, task, puzzle):
    return task.format(hrm.solve(model, puzzle, task=task, max_steps=1).answer)
