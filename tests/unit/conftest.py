from .installation import installation
from .sample import workshop

__all__ = ["installation", "workshop"]
