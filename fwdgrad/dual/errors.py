"""What the engine raises where it cannot go on."""


class DualError(RuntimeError):
    """An operation that the dual engine cannot differentiate, and what to do about it."""


class PerExampleError(Exception):
    """A per-example direction arrived where a rule wanted one tensor per parameter; the engine adds the name."""
