"""CardioBench's own numbers and files, so that results can be compared with published ones."""
