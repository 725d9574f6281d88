"""`python -m vipatterns` is the command `vipatterns`."""

from vipatterns.cli import main

main()
