"""Text that no reward expects."""

HOSTILE = {
    "empty": "",
    "blanks": " \n\t ",
    "null": "\0",
    "dots": "...",
    "half a surrogate pair": "\ud800",
    "invisible": "\u202e\u200b\ufeff",
    "emoji": "🙂" * 50,
    "no spaces": "但是" * 500,
    "one word": "a" * 20_000,
    "many words": "but " * 2_000,
    "markup": "%s {} <|im_end|> ![](x) $(rm)",
    "quotes": "'" * 300,
}
"""By name."""
