"""``python -m ngfftile`` is the command line."""

from ngfftile.cli import main

main()
