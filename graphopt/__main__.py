"""`python -m graphopt`: whatever is installed as the command `graphopt`. The core itself knows no tool."""

from importlib.metadata import entry_points

if __name__ == "__main__":
    next(iter(entry_points(group="console_scripts", name="graphopt"))).load()()
