"""How long training takes, from scratch to a fixed accuracy on puzzles never seen.

A target is a YAML file here, a training recipe with two keys more: ``data``, the arguments of ``hrm data`` that make
its puzzles, and ``title``. The rules are those of the page, docs/speedrun.md.
"""
