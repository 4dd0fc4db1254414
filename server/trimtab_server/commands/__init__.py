"""One module for each `trimtab` command except serve, generate and version."""
