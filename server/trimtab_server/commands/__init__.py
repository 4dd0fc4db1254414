"""Commands of `trimtab` beside serve and generate, one a module."""
