"""Scores, one per query and metric; their means, intervals and counts."""
