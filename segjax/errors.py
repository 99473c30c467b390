"""The one exception class for mistakes that the user can mend. Every module may import it."""


class SegjaxError(ValueError):
    """A user's mistake, told in full: what, expected, got, in which file, and what to do.

    The commands print its text and exit with status 2; a library user catches it as a ValueError.
    """
