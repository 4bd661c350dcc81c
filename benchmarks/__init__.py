"""What prints the project's tables, beside the tools that people use today: `python -m benchmarks.NAME`."""
