"""Judging changes: each is cut out as a fragment and run on both sides against its contract."""
