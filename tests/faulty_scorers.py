"""A scorer that fails once an answer has begun."""


def fails(ids):
    if len(ids) > 12:
        raise RuntimeError("planted")
    return 0.0
