"""The wheels to bring to a machine with a GPU and no network: ``python -m bench.gpu.wheels`` lists them.

``make gpu`` needs what the packages and their tests need. torch and triton belong to the machine, with its CUDA. Run it
here to list the wheels of this environment's versions, with the command that downloads them; ``--check FOLDER`` says
which are missing from a folder or made for another Python; ``--installed`` says, on the machine, what is still missing.
Exit codes: 0; 1 if something is missing.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from bench.processes import ROOT

OF_THE_MACHINE = ("torch", "triton")
TESTS = ("pytest", "pytest-xdist", "hypothesis")
"""Of the extra "test", what runs on the machine."""


def required() -> list[Requirement]:
    """What pyproject.toml asks for, without what the machine has."""
    try:
        import tomllib  # type: ignore[import-not-found]
    except ModuleNotFoundError:  # Python 3.10
        from pip._vendor import tomli as tomllib  # type: ignore[no-redef]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chosen = [Requirement(line) for line in project["dependencies"]]
    chosen += [one for line in project["optional-dependencies"]["test"] if (one := Requirement(line)).name in TESTS]
    return [one for one in chosen if one.name not in OF_THE_MACHINE]


def pinned() -> list[str]:
    """``name==version`` of everything that this environment has for :func:`required`, by name.

    Raises:
        PackageNotFoundError: a package is not installed here.
    """
    found: dict[str, str] = {}
    waiting = required()
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name in found or name in OF_THE_MACHINE:
            continue
        installed = distribution(name)
        found[name] = installed.version
        needs = (Requirement(line) for line in installed.requires or ())
        waiting += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return [f"{name}=={found[name]}" for name in sorted(found)]


def download_command(wheels: Iterable[str], python: str) -> str:
    """The pip command that downloads wheels for that Python on Linux x86-64."""
    platforms = " ".join(f"--platform manylinux_2_{minor}_x86_64" for minor in (28, 17))
    return f"pip download --no-deps --only-binary=:all: --python-version {python} {platforms} -d wheels " + " ".join(
        wheels
    )


def missing_from(folder: Path, wheels: Iterable[str], python: str) -> Iterator[str]:
    """What a folder lacks of ``wheels`` for that Python on Linux x86-64."""
    number = tuple(int(part) for part in python.split("."))
    platforms = [*(f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)), "linux_x86_64"]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    fitting: set[Tag] = {*cpython_tags(number, platforms=platforms)}
    fitting |= {*compatible_tags(number, f"cp{number[0]}{number[1]}", platforms)}
    brought = {path: parse_wheel_filename(path.name) for path in folder.glob("*.whl")}
    for wheel in wheels:
        own = [(path, tags) for path, (name, number, _, tags) in brought.items() if f"{name}=={number}" == wheel]
        if not own:
            yield f"{wheel}: no wheel in {folder}"
        elif not any(tags & fitting for _, tags in own):
            yield f"{wheel}: {own[0][0].name} is not for Python {python} on Linux x86-64"


def not_installed() -> Iterator[str]:
    """What this environment lacks of :func:`required`, torch and triton."""
    for one in [*required(), *map(Requirement, OF_THE_MACHINE)]:
        try:
            if not one.specifier.contains(version(one.name), prereleases=True):
                yield f"{one.name} {version(one.name)} is installed, expected {one.specifier}"
        except PackageNotFoundError:
            yield f"{one.name} is not installed"


def main(arguments: list[str] | None = None) -> int:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser = argparse.ArgumentParser("python -m bench.gpu.wheels", description=__doc__)
    parser.add_argument("--python", default=here, metavar="X.Y", help="of the machine with the GPU; default: this one")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="say what a folder of wheels lacks")
    parser.add_argument("--installed", action="store_true", help="say what this environment lacks")
    options = parser.parse_args(arguments)
    if options.installed:
        missing = list(not_installed())
    elif options.check:
        missing = list(missing_from(options.check, pinned(), options.python))
    else:
        print("\n".join([*pinned(), "", download_command(pinned(), options.python)]))
        return 0
    print("\n".join(missing or ["nothing is missing"]))
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
