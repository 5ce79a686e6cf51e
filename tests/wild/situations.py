"""All situations, kind by kind."""

from wild import changing, derivatives, means, models, state
from wild.situation import SITUATIONS

__all__ = ["SITUATIONS", "changing", "derivatives", "means", "models", "state"]
