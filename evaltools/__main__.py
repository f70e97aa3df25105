"""``python -m evaltools``."""

from evaltools.cli.main import main

main()
