"""Errors a reader can cause, in one shape: where, what was found, what was expected, what to do."""


class MinisearchError(Exception):
    """Base class of every error raised on purpose by this package."""


class InputError(MinisearchError):
    """Something the user supplied cannot be used.

    Args:
        where: the file, row, column, field or option at fault.
        found: what is there.
        expected: what should be there.
        remedy: what to do about it, as one imperative sentence.
    """

    def __init__(self, where: str, found: str, expected: str, remedy: str) -> None:
        self.where, self.found, self.expected, self.remedy = where, found, expected, remedy
        super().__init__(where, found, expected, remedy)

    def __str__(self) -> str:
        return f"{self.where}: found {self.found}; expected {self.expected}. Remedy: {self.remedy}"


def one_of(where: str, found: str, choices: list[str]) -> InputError:
    """The error for a name that is not among `choices`, with the nearest one suggested."""
    import difflib

    near = difflib.get_close_matches(found, choices, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(choices)}."
    return InputError(where, repr(found), "one of " + ", ".join(choices), remedy)
