"""The one exception that commands turn into a one-line message and exit code 2."""


class InputError(Exception):
    """Bad input: the message is one line and names the file, row or flag at fault."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
