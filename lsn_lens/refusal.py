"""The one exception by which a method or check says that it cannot be had."""


class DoesNotApply(ValueError):
    """A method or check that cannot be had on this model or text; the message says why."""
