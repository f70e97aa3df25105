"""Results as text, files and figures."""
