"""All situations, kind by kind."""

from wild import changing, derivatives, means, state
from wild.situation import SITUATIONS

__all__ = ["SITUATIONS", "changing", "derivatives", "means", "state"]
