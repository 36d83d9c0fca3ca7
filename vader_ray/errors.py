"""How a run can end early."""


class RunFailed(RuntimeError):
    """A run ended without its result; the message says why and how to go on."""
