"""The error that a user can act on."""


class RagbenchError(Exception):
    """Something the user gave is missing, broken or contradictory; the message says what, where, and what to do.

    The command line prints it without a traceback.
    """
