"""Task files: what is asked, one YAML a task; `evaltools.task` reads them."""
