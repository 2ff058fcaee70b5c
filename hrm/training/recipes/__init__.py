"""The recipes that come with the package, one YAML file each."""

from importlib.resources import files


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(entry.name[:-5] for entry in files(__name__).iterdir() if entry.name.endswith(".yaml"))
