"""ragbench: audit a RAG system, fine-tune the part that fails, and prove on held-out questions whether it helped."""

__version__ = "0.1.0"
