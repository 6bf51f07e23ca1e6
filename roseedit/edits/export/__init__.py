"""Edits in the forms that other tools read: a PEFT adapter, a merged checkpoint, a patch, a GGUF file, vLLM.

One file per form; `forms.py` lists them.
"""
