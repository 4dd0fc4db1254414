"""Function scorers for tests with a real base."""


def exclaims(text: str) -> float:
    """The number of exclamation marks."""
    return float(text.count("!"))
