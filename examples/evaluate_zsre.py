"""ZsRE with one-hop portability: questions, one rewording, unrelated questions.

    python examples/evaluate_zsre.py --limit 100 --out runs/zsre

Reads $ROSEEDIT_DATA/zsre/zsre_mend_eval_portability_gpt4.json; without ROSEEDIT_DATA, the sample in data/. Several
edits share a locality question there; the intervals of locality resample questions for that reason.
"""

from batch_evaluate import main

if __name__ == "__main__":
    main("zsre")
