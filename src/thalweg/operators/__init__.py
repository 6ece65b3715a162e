"""A layer as a linear operator."""

from thalweg.operators.spectrum import largest_singular_value, power_iteration

__all__ = ["largest_singular_value", "power_iteration"]
