"""The command line: one sub-command a stage, heavy imports only inside the commands."""

from pocketfocus.cli.app import main

__all__ = ["main"]
