"""Mistakes that are the user's to mend."""


class UserError(Exception):
    """What was found, what was expected, where, and what to do.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2
