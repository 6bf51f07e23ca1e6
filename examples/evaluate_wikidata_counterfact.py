"""KnowEdit wiki_counterfact: false facts with portability in three groups and same-subject locality.

    python examples/evaluate_wikidata_counterfact.py --limit 100 --out runs/wikidata_counterfact

Reads $ROSEEDIT_DATA/knowedit/wiki_counterfact/test_cf.json; without ROSEEDIT_DATA, the sample in data/.
"""

from batch_evaluate import main

if __name__ == "__main__":
    main("wikidata-counterfact")
