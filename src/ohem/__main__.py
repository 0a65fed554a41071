"""``python -m ohem`` is the command line."""

from ohem.cli import main

main()
