"""Studies and tables of the docs, as scripts: not part of the wheel."""
