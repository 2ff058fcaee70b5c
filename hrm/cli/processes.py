"""What only one of several processes prints: under torchrun the first one."""

import os
import sys

from hrm.errors import printable


def is_main() -> bool:
    """Whether this is the first process of torchrun, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


def say_checkpoint(model: str) -> None:
    """Where ``model`` is a training run, print on stderr which of its checkpoints was used."""
    from hrm.locate import described

    words = described(model) if is_main() else None
    if words is not None:
        print(f"hrm: {printable(words)}", file=sys.stderr)
