"""``python -m hrm``: the command line, as torchrun starts it."""

from hrm.cli import main

main()
