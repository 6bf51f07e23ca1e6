"""HadSkip: serve the edited model with layers skipped, within a budget.

A *profile* is a fixed set of executed layers. Under the `bounded` contract the profile answers; under `lossless` it
drafts and the full model verifies. See docs/hadskip.md and docs/hadskip-decoding.md.
"""
