"""Gymnasium environments whose optimum is known in closed form."""

__all__: list[str] = []
