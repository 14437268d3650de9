"""From queries to runs: dense encoding with FAISS, BM25, and their fusion."""
