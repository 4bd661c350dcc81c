"""Pipelines of diffusers run as sampling programs."""
