"""RoseLoRA whose rows and columns are whole neurons of an MLP: the sparsest support, and one that opens by itself."""
