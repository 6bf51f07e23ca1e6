"""Scoring what a model says: two primitives, pure metrics over them, and the before/after table."""
