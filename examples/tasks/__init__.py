"""The tasks of the examples: a module for each page, imported by the setup script and by the page."""
