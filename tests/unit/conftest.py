from .sample import workshop

__all__ = ["workshop"]
