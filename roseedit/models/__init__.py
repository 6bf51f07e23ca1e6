"""Loading models, finding their parts by structure, and running only the upper part of them."""
