"""`python -m graphopt`: the same as the command `graphopt`."""

from __future__ import annotations

from graphopt.tools.main import main

if __name__ == "__main__":
    main()
