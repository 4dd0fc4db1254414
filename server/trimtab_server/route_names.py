"""The name of a request's route, for logs and traces."""

from starlette.routing import Match
from starlette.types import Scope

UNKNOWN = "-"


def template(scope: Scope) -> str:
    """The path of the route that answers a request, with the names of its parameters.

    Never the path of the request, in which a client may write anything; "-" if there is no route.
    """
    for route in scope["app"].routes:
        if route.matches(scope)[0] != Match.NONE:
            return str(route.path)
    return UNKNOWN
