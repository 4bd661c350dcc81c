"""Sampling programs: the denoising loop as data, so that its schedule, caching and guidance are passes too."""
