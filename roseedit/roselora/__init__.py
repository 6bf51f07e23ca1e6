"""RoseLoRA: row- and column-wise sparse low-rank updates (Wang et al., EMNLP 2024, arXiv 2406.10777).

The method, readable in one sitting: `schedule` (how much is kept at step t), `importance` (what is worth keeping),
`sparsity` (what is cut, and the guarantee that follows), `adapter` (the factors of many edits side by side),
`objective` (what is asked of an edit), `trainer` (the steps); `neurons` has the support that ships. All tensor
functions take one factor pair or, with a leading dimension, a bank of E pairs.
"""
