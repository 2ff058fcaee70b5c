"""Which of several processes prints: under torchrun only the first one does."""

import os


def is_main() -> bool:
    """Whether this is the first process of torchrun, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0
