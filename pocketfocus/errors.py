"""The one exception for what a user can mend."""


class UserError(Exception):
    """Bad input or environment: the message names both sides and the way out.

    The command line prints it as one line and exits with 2; a traceback only with `--debug`.
    """
