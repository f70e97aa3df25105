"""Suites: which commands are run on which tasks, as YAML values."""
