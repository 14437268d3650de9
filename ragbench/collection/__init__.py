"""The corpus, its questions and their gold passages: reading, writing, checking, and the embedded default."""
