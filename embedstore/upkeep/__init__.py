"""Upkeep of a store: what builds are under way, what may be swept, what must be forgotten.

Stands above `embedstore.snapshot` (what history needs) and `embedstore.build` (what builds need).
"""
