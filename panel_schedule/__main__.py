"""``python -m panel_schedule``."""

from .cli.commands import main

main(prog_name="panel-schedule")
