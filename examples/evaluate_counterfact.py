"""CounterFact: false facts, two paraphrases, neighbours that must keep their answer.

    python examples/evaluate_counterfact.py --limit 100 --out runs/counterfact

Reads $ROSEEDIT_DATA/counterfact/counterfact_full.json; without ROSEEDIT_DATA, the sample in data/.
"""

from batch_evaluate import main

if __name__ == "__main__":
    main("counterfact")
