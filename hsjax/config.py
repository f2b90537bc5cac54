"""What a user can get wrong in a config, said in one line before anything compiles."""


class UserError(ValueError):
    """A mistake the user can mend: its message is one line that says what to do."""
