class UserError(ValueError):
    """Something the person at the terminal can mend; scripts print it as one line and exit with status 2."""
