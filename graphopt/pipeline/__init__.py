"""Passes, pipelines and what a run of them reports."""
