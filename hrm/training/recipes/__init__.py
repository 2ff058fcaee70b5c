"""The recipes of the package, one YAML file each."""

from importlib.resources import files


def recipes() -> list[str]:
    """The names of the recipes of the package."""
    return sorted(entry.name[:-5] for entry in files(__name__).iterdir() if entry.name.endswith(".yaml"))
