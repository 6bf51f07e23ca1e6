"""Profiles for other programs: a checkpoint with the layers dropped, a folder of custom code that carries the gates."""
