"""What the baselines are trained on: one row per request, with the positions and tokens of its answer."""

from __future__ import annotations

from dataclasses import replace

from roseedit.models.encoding import encode_pair
from roseedit.models.load import LoadedModel
from roseedit.requests import EditRequest
from roseedit.roselora.objective import Row


def answer_row(loaded: LoadedModel, request: EditRequest, number: int, edit: int, *, end_mark: bool) -> Row:
    """The answer token by token, each after the right ones before it (FT-M, LoRA).

    Args:
        loaded: The model.
        request: The request.
        number: Its place among the requests.
        edit: The place of its edit among those trained side by side.
        end_mark: Ask for the end mark too.

    Returns:
        The row.
    """
    encoded = encode_pair(loaded.tokenizer, request.prompt, request.target_new, end_mark=end_mark)
    columns = tuple(range(encoded.start - 1, len(encoded.ids) - 1))
    return Row(edit, number, encoded.ids[:-1], columns, encoded.target, 1.0)


def last_token_row(loaded: LoadedModel, request: EditRequest, number: int, edit: int, *, end_mark: bool) -> Row:
    """All tokens of the answer at the last token of the prompt (FT-L): more than one cannot be likely there.

    Args:
        loaded: The model.
        request: The request.
        number: Its place among the requests.
        edit: The place of its edit among those trained side by side.
        end_mark: Ask for the end mark too.

    Returns:
        The row.
    """
    row = answer_row(loaded, request, number, edit, end_mark=end_mark)
    last = row.columns[0]
    return replace(row, ids=row.ids[: last + 1], columns=(last,) * len(row.labels))
