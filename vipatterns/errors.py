"""The one exception whose message is a sentence for the person at the keyboard."""


class InputError(ValueError):
    """Data, a model, a setting or a file is not what was needed: the message says what was expected, what came, what to do."""
