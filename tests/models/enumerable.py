from trimtab_models.worlds.tiny import *  # noqa: F403
from trimtab_models.worlds.tiny import Tiny as World  # noqa: F401
