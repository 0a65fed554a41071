"""The command line: a file for each group of commands. torch is imported only by the commands that run it.

To add a command, decorate a function with ``@command()`` in a file here, and import that file below. It is given a
console: what it says there is talk, and what it answers there, for programs and for people, is the answer.
"""

# The order of these imports is the order in which --help lists the commands.
from ohem.cli import data, training, watching, evaluation, exporting, looking, studies  # isort: skip
from ohem.cli.entry import main

__all__ = ["data", "evaluation", "exporting", "looking", "main", "studies", "training", "watching"]
