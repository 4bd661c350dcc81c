"""Fragments: copies of some nodes as a small model of their own."""

from __future__ import annotations
