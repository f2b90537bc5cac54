"""What goes wrong through no fault of the program."""


class UserError(ValueError):
    """A mistake the user can mend: its message is one line that says what to do."""
