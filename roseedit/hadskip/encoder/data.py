"""Classification data: JSON arrays of records with one sentence or two, and batches of rows of like length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roseedit.editsets.places import data_file
from roseedit.errors import DataError, refusal

TASKS = {
    "sst2": ("glue/sst2_train_small.json", "glue/sst2_dev.json"),
    "rte": ("glue/rte_train.json", "glue/rte_dev_balanced.json"),
}
FORM = 'records {"sentence": text, "label": 0, 1, ...} or {"sentence1": text, "sentence2": text, "label": ...}'
POOL = 16  # batches that are drawn together and sorted by length


@dataclass(frozen=True)
class Example:
    """One labelled input.

    Attributes:
        texts: One sentence or two.
        label: Class, from 0.
    """

    texts: tuple[str, ...]
    label: int


def read_examples(path: str | Path) -> list[Example]:
    """Read a file of examples.

    Args:
        path: A JSON array of records.

    Returns:
        The examples, in the file's order.

    Raises:
        DataError: No such file, no JSON array, or a record of another form; the message names the first.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(refusal(f"no file {str(path)!r}", "a JSON file that exists", "Check the path."))
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(refusal(f"{str(path)!r}, which is not JSON ({error})", "a JSON array", "Mend it.")) from error
    if not isinstance(records, list) or not records:
        got = f"{str(path)!r} holding " + ("an empty array" if records == [] else type(records).__name__)
        raise DataError(refusal(got, f"a JSON array of {FORM}", "Mend it."))
    examples = [_example(record, f"record {i} of {file.name}") for i, record in enumerate(records)]
    if len({len(example.texts) for example in examples}) > 1:
        message = refusal(f"{file.name} with single sentences and pairs", "one kind", "Split the file.")
        raise DataError(message)
    return examples


def _example(record: Any, where: str) -> Example:
    fields = record if isinstance(record, dict) else {}
    names = ("sentence",) if "sentence" in fields else ("sentence1", "sentence2")
    texts = tuple(fields.get(name) for name in names)
    label = fields.get("label")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(refusal(f"{where} without text in {' and '.join(names)}", FORM, "Mend or remove it."))
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise DataError(refusal(f"{where} with label {label!r}", "a whole number from 0", "Mend or remove it."))
    return Example(tuple(str(text) for text in texts), label)


def read_task(
    task: str | None, train: str | Path | None = None, dev: str | Path | None = None
) -> tuple[list[Example], list[Example]]:
    """Training and development examples of a task, or of a user's files.

    Args:
        task: A key of `TASKS`, whose files lie in the folder that ROSEEDIT_DATA names; may be left out with both files.
        train: A file in its place.
        dev: Likewise.

    Returns:
        Training and development examples.

    Raises:
        DataError: An unknown task, files missing or malformed, or labels that do not fit each other.
    """
    if task is not None and task not in TASKS:
        remedy = "Choose one of them, or give --train and --dev."
        raise DataError(refusal(f"task {task!r}", ", ".join(TASKS), remedy))
    if task is None and (train is None or dev is None):
        raise DataError(
            refusal("neither a task nor both files", ", ".join(TASKS), "Give a task, or --train and --dev.")
        )
    files = TASKS[task] if task else ("", "")
    learnt = read_examples(train or data_file(files[0]))
    judged = read_examples(dev or data_file(files[1]))
    n_classes(learnt)
    unknown = {example.label for example in judged} - {example.label for example in learnt}
    if unknown:
        got = f"labels {sorted(unknown)} that only the development file has"
        raise DataError(refusal(got, "labels of the training file", "Correct the files."))
    if len(learnt[0].texts) != len(judged[0].texts):
        raise DataError(
            refusal("single sentences in one file and pairs in the other", "one kind", "Correct the files.")
        )
    return learnt, judged


def n_classes(examples: Sequence[Example]) -> int:
    """How many classes there are.

    Args:
        examples: Training examples.

    Returns:
        At least 2.

    Raises:
        DataError: Fewer, or a gap in the labels.
    """
    labels = sorted({example.label for example in examples})
    if len(labels) < 2 or labels != list(range(len(labels))):
        raise DataError(refusal(f"training labels {labels}", "0, 1, ... without a gap, two or more", "Renumber them."))
    return len(labels)


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Set some training examples aside.

    Args:
        examples: The training examples.
        share: Share that is set aside.
        seed: Of the draw.

    Returns:
        Those to train on, and those set aside.

    Raises:
        DataError: Too few for both parts.
    """
    n = round(len(examples) * share)
    if n < 2 or len(examples) - n < 2:
        got = f"{len(examples)} training examples with a share of {share} set aside"
        raise DataError(refusal(got, "at least two on both sides", "Give more examples."))
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    return [examples[i] for i in order[n:]], [examples[i] for i in order[:n]]


class Encoded:
    """Examples as tokens.

    Args:
        texts: One sentence or two per row.
        tokenizer: The encoder's.
        max_tokens: Longer rows are cut; of two sentences the longer one first.
        labels: One per row; left out for text to be classified.

    Attributes:
        lengths: (rows,), tokens.
        labels: (rows,).
    """

    def __init__(
        self, texts: Sequence[tuple[str, ...]], tokenizer: Any, max_tokens: int, labels: Sequence[int] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        columns = [list(column) for column in zip(*texts, strict=True)]
        self.rows = tokenizer(*columns, truncation=True, max_length=max_tokens)
        self.lengths = torch.tensor([len(ids) for ids in self.rows["input_ids"]])
        self.labels = torch.tensor(list(labels) if labels is not None else [0] * len(texts))

    @classmethod
    def of(cls, examples: Sequence[Example], tokenizer: Any, max_tokens: int) -> Encoded:
        """Labelled examples as tokens.

        Args:
            examples: The examples.
            tokenizer: The encoder's.
            max_tokens: Longer rows are cut.

        Returns:
            The rows.
        """
        labels = [example.label for example in examples]
        return cls([example.texts for example in examples], tokenizer, max_tokens, labels)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: Tensor, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Some rows, padded to the longest of them.

        Args:
            rows: Their indices.
            device: Where they go.

        Returns:
            What the encoder takes, each (rows, tokens).
        """
        chosen = {name: [values[int(i)] for i in rows] for name, values in self.rows.items()}
        padded = self.tokenizer.pad(chosen, return_tensors="pt")
        return {name: tensor.to(device) for name, tensor in padded.items()}

    def by_length(self, size: int) -> list[Tensor]:
        """All rows in batches of like length, for evaluation.

        Args:
            size: Rows per batch.

        Returns:
            Indices per batch.
        """
        return list(self.lengths.argsort(stable=True).split(size))

    def steps(self, size: int, steps: int, generator: torch.Generator) -> list[Tensor]:
        """Rows of each training step: shuffled anew in each epoch, of like length within a batch.

        Args:
            size: Rows per step.
            steps: How many steps.
            generator: Source of the shuffling.

        Returns:
            Indices per step.
        """
        found: list[Tensor] = []
        while len(found) < steps:
            order = torch.randperm(len(self), generator=generator)
            batches = [
                batch for pool in order.split(size * POOL) for batch in pool[self.lengths[pool].argsort()].split(size)
            ]
            found += [batches[int(i)] for i in torch.randperm(len(batches), generator=generator)]
        return found[:steps]
