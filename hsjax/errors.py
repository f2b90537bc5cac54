"""Errors that end a run. This module imports nothing."""


class UserError(ValueError):
    """A mistake the user can mend: its message is one line that says what to do."""


class Diverged(RuntimeError):
    """A term of the loss, or a parameter, stopped being a finite number."""


class Interrupted(RuntimeError):
    """The run was asked to stop and has saved its state; `signal` is what asked."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal = signal_number
