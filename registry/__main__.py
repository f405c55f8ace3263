"""``python -m registry`` is ``mayfly``."""

from registry.cli import main

main()
