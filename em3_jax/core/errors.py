"""The error a user can act on."""


class UserError(Exception):
    """Something the user can mend: one line that says what is wrong, where, and what to do.

    Commands print it without a stack trace and exit with code 2.
    """
