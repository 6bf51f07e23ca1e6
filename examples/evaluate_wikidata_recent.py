"""KnowEdit wiki_recent: recent facts with portability in three groups and same-subject locality.

    python examples/evaluate_wikidata_recent.py --limit 100 --out runs/wikidata_recent

Reads $ROSEEDIT_DATA/knowedit/wiki_recent/recent_test.json. A newer model may know some of these facts before the
edit: look at the column "before".
"""

from batch_evaluate import main

if __name__ == "__main__":
    main("wikidata-recent")
