"""The documentation is true: snippets run, links lead somewhere, tables match the code, the site builds."""

import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from hrm.cli import main
from hrm.data import TASKS
from hrm_kernels.nn import ReasoningModule

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(autouse=True)
def only_our_tasks():
    """A snippet may register a task, which the tests after it must not see."""
    known = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(known)


# Public names

MODULES = (
    "hrm",
    "hrm_kernels",
    "hrm_kernels.casts",
    "hrm_kernels.fixed_point",
    "hrm_kernels.nn",
    "hrm_kernels.optim",
    "hrm_kernels.sharded_embedding",
    "hrm_kernels.shims",
)
NAMES = [f"{module}.{name}" for module in MODULES for name in importlib.import_module(module).__all__]
OPS = [name for name in importlib.import_module("hrm_kernels").__all__ if hasattr(torch.ops.hrm_kernels, name)]


def find(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("path", NAMES)
def test_every_public_name_has_a_docstring(path):
    value = find(path)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        pytest.skip("a constant or an alias: its comment stands below it")
    text = inspect.getdoc(value)
    assert text and len(text.splitlines()[0]) > 20, f"{path} has no docstring of its own"
    if inspect.isclass(value) and issubclass(value, torch.nn.Module) and not issubclass(value, torch.nn.Linear):
        everything = text + (inspect.getdoc(value.forward) or "")
        assert "[" in everything, f"{path} does not give the shapes of its forward"
    if inspect.isfunction(value) and not path.startswith("hrm_kernels.nn."):  # (small ones, described in one line)
        for name in inspect.signature(value).parameters:
            assert re.search(rf"\b{name}\b", text), f"{path} does not say what {name} is"


@pytest.mark.parametrize("op", OPS)
def test_every_op_gives_shapes_and_errors(op):
    text = inspect.getdoc(find(f"hrm_kernels.{op}"))
    for part in ("Args:", "Returns:", "Raises:", "``[", "TypeError, ValueError", "Source:"):
        assert part in text, f"{op} lacks {part}"


def test_the_ops_are_what_is_tested():
    assert {"swiglu", "token_mixing", "recurrent_cycles", "stablemax_cross_entropy"} <= set(OPS)


# Snippets

PAGES = {path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]}
SLOW = {"docs/tutorials/arc.md", "docs/tutorials/arc6.md", "docs/how-to/gpus.md"}  # ARC's sequences; torchrun
BLOCK = re.compile(r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
SMALLER = {  # what Python trains, for a few steps instead of half a minute
    "README.md": [('out="demo/run2"', 'out="demo/run2", max_steps=4')],
    "docs/tutorials/own-puzzle.md": [("epochs=16", "epochs=16, max_steps=4")],
}
LIMITS = {"data": {"--train": 64, "--test": 16, "--augment": 2}, "adapt": {"--steps": 4}}
EXTRA = {
    "train": ["max_steps=4"],
    "analyze": "--puzzles 4 --boards 1 --baseline-steps 0 --max-examples 8".split(),
    "scale": ["--max-examples=4"],
}


def smaller(words):
    """The ``hrm`` command with fewer puzzles and steps; what is given twice counts as given last."""
    limits, extra = LIMITS.get(words[1], {}), EXTRA.get(words[1], [])
    words = [
        str(min(int(word), limits[before])) if before in limits else word for before, word in zip(["", *words], words)
    ]
    return words + [word for word in extra if word.partition("=")[0] not in " ".join(words)]


class Reader:
    """Someone who types what a page shows, from top to bottom, in an empty folder."""

    def __init__(self, page, folder, monkeypatch):
        self.page, self.folder, self.monkeypatch = page, folder, monkeypatch
        self.names = {"__name__": page, "my_model": ReasoningModule(1, 64, 2)}

    def python(self, text):
        for old, new in SMALLER.get(self.page, []):
            text = text.replace(old, new)
        exec(compile(text, self.page, "exec"), self.names)

    def bash(self, text):
        for command in text.replace("\\\n", " ").splitlines():
            if shlex.split(command, comments=True):
                self.run(command)

    def console(self, text):
        checker, how = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.M):
            output = self.run(command, may_fail=True)
            assert checker.check_output(expected, output, how), f"{command} printed\n{output}\nexpected\n{expected}"

    def run(self, command, may_fail=False):
        words = shlex.split(command, comments=True)
        if words[0] == "hrm":
            code, output = self.hrm(smaller(words))
        else:
            code, output = self.inline(words[2]) if words[:2] == ["python", "-c"] else self.shell(command)
        invalid = words[:2] == ["hrm", "solve"] and code == 1  # a model of four steps does not solve much
        assert code == 0 or may_fail or invalid, f"{command} exits with {code}\n{output}"
        return output

    # in this process, where torch is loaded already

    def hrm(self, words):
        self.monkeypatch.setattr(sys, "argv", words)
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            with pytest.raises(SystemExit) as ended:
                main()
        return ended.value.code or 0, output.getvalue()

    def inline(self, code):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, {})
        return 0, output.getvalue()

    def shell(self, command):
        command = command.replace("torchrun", f"{shlex.quote(sys.executable)} -m torch.distributed.run")
        command = re.sub(r"^python ", f"{shlex.quote(sys.executable)} ", command)
        command = re.sub(r"(-m hrm train .*)", r"\1 max_steps=2", command)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment.pop("TRITON_INTERPRET", None)
        done = subprocess.run(
            command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        return done.returncode, done.stdout


def blocks(path):
    """``(reason not to run it, language, text)`` of each block of code."""
    return [(match["reason"], match["language"], match["text"]) for match in BLOCK.finditer(path.read_text("utf-8"))]


@pytest.fixture
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in PAGES])
def test_the_snippets_of_a_page_run(page, tmp_path, monkeypatch, same_threads):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    reader = Reader(page, tmp_path, monkeypatch)
    for reason, language, text in blocks(PAGES[page]):
        if reason is None and language != "text":
            getattr(reader, language)(text)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page):
    text = PAGES[page].read_text("utf-8")
    assert len(re.findall(r"^```", text, re.M)) == 2 * len(blocks(PAGES[page])), "a fence is not closed, or indented"
    for reason, language, _ in blocks(PAGES[page]):
        assert language in ("python", "bash", "console", "text")
        assert reason is None or len(reason) > 10
    assert text.count("<!-- not run") == sum(reason is not None for reason, _, _ in blocks(PAGES[page]))


# Links, tables, numbers


def anchors(path):
    """The ids of a Markdown file's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md"])
def test_links_of_files_outside_the_site_lead_somewhere(name):
    path = ROOT / name
    targets = re.findall(r'\]\(([^)\s]+)\)|(?:src|srcset)="([^"]+)"', path.read_text("utf-8"))
    for target in (one or other for one, other in targets):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), f"{name} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{name} links to {target}"


PLACES = r"`((?:hrm|hrm_kernels|csrc|tests|bench|docs|examples)/[\w./-]*)`"


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_every_file_that_is_named_is_there(page):
    for name in re.findall(PLACES, (ROOT / page).read_text("utf-8")):
        assert (ROOT / name).exists(), f"{page} names {name}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_table_of_environment_variables_is_complete():
    read = r"environ(?:\.get\(|\[)\s*\"(HRM_\w+)\"|getenv\(\"(HRM_\w+)\""
    code = [
        ROOT / "setup.py",
        *(path for top in ("hrm", "hrm_kernels", "bench", "csrc") for path in (ROOT / top).rglob("*")),
    ]
    texts = [path.read_text("utf-8") for path in code if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh")]
    used = {one or other for text in texts for one, other in re.findall(read, text)}
    assert used == set(re.findall(r"^\| `(HRM_\w+)`", (DOCS / "environment.md").read_text(), re.M))


def test_the_accuracies_of_recipes_are_those_that_were_measured():
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+) % \| ([\d.]+) % \|$", (DOCS / "recipes.md").read_text(), re.M)
    measured = {"demo": json.loads((ROOT / "bench/results/demo-cpu-2026-11-24/eval.json").read_text())}
    for card in (ROOT / "hrm/models").glob("*/card.json"):
        measured[card.parent.name] = json.loads(card.read_text())["accuracy"][0]
    assert {name for name, _, _ in rows} == set(measured)
    for name, *shown in rows:
        metrics = measured[name]["exact_accuracy"], measured[name]["early_exact_accuracy"]
        assert shown == [f"{100 * value:.1f}" for value in metrics], name


def test_the_page_of_recipes_names_all_recipes():
    text = (DOCS / "recipes.md").read_text()
    assert all(f"`{path.stem}`" in text for path in (ROOT / "hrm/training/recipes").glob("*.yaml"))


@pytest.mark.slow
def test_the_figure_shows_what_the_shipped_model_does(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("architecture", DOCS / "figures" / "architecture.py")
    monkeypatch.setitem(sys.modules, "architecture", figure := importlib.util.module_from_spec(spec))
    spec.loader.exec_module(figure)
    monkeypatch.setattr(figure, "FOLDER", tmp_path)
    figure.main()
    for name in ("architecture.svg", "architecture-dark.svg"):
        drawn, committed = (texts(folder / name) for folder in (tmp_path, DOCS / "figures"))
        assert drawn == [pytest.approx(one, abs=0.005) if isinstance(one, float) else one for one in committed]
        assert drawn.count("segment") == 3


def texts(picture):
    """The texts of an SVG; Q values as numbers, because another CPU rounds them differently."""
    found = re.findall(r"<text[^>]*>([^<]*)<", picture.read_text("utf-8"))
    return [float(one) if re.fullmatch(r"\d\.\d+", one) else one for one in found]


# The site, and files that other programs read


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="MkDocs is not installed: pip install hrm[docs]")
def test_the_site_builds_without_a_dead_link(tmp_path):
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    hrm, kernels, commands = (
        (tmp_path / f"{name}.html").read_text("utf-8") for name in ("python-hrm", "python-kernels", "command-line")
    )
    assert "TRMConfig" in hrm and "hierarchical" in hrm.lower()
    assert all(f'id="hrm_kernels.{op}"' in kernels for op in OPS)
    assert all(f'id="hrm-{name}"' in commands for name in ("data-sudoku", "train", "eval", "solve", "scale", "doctor"))


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_the_files_for_github_are_well_formed(path):
    content = yaml.safe_load(path.read_text())
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for job in content.get("jobs", {}).values():
        for step in job["steps"]:
            assert set(re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))) <= targets


def test_the_citation_names_this_version_and_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    for name in ("version", "license"):
        assert f'\n{name} = "{citation[name]}"\n' in project
    urls = " ".join(one["url"] for one in citation["references"])
    assert all(paper in urls for paper in ("2506.21734", "2510.04871", "2605.21488", "2512.14693"))
