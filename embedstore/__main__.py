"""``python -m embedstore``."""

from embedstore.cli.main import main

main()
