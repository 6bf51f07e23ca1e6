"""Edits as objects: the sparse delta, what is live on a model, and the files of an edit."""
