"""Configuration files that may come from anywhere: bounded in size, and without access to the environment."""

import re
from typing import Any

import yaml
from omegaconf import OmegaConf

_MOST_VALUES = 100_000


def parse_yaml(text: str) -> Any:
    """The plain values of a configuration file, made :func:`inert`; ``${key}`` is not filled in yet.

    Raises:
        YAMLError, OmegaConfBaseException, ValueError: the text is not YAML, is nested too deep, is too large with its
            aliases, or has a number of thousands of digits.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and not isinstance(root, yaml.CollectionNode):
            raise yaml.YAMLError("it is a single word, expected lines such as 'key: value'")
        if _expanded(root, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"with its aliases it has more than {_MOST_VALUES:,} values")
        return inert(OmegaConf.to_container(OmegaConf.create(text)))
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep") from None


def _expanded(node: yaml.Node | None, known: dict[int, int]) -> int:
    """The number of values below ``node``, with every alias expanded."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        children = (
            node.value if isinstance(node, yaml.SequenceNode) else [child for pair in node.value for child in pair]
        )
        known[id(node)] = 1 + sum(_expanded(child, known) for child in children)
    return known[id(node)]


def inert(values: Any) -> Any:
    """``values`` in which OmegaConf fills in ``${key}`` but calls no resolver.

    ``${oc.env:HOME}`` and other resolvers stay text, so the file cannot read the environment.
    """
    if isinstance(values, dict):
        return {key: inert(value) for key, value in values.items()}
    if isinstance(values, list):
        return [inert(value) for value in values]
    if isinstance(values, str) and re.search(r"\$\{[^}]*:", values):
        # escape the dollar sign, and the backslashes before it
        return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + "\\${", values)
    return values
