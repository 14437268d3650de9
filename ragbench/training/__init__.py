"""Training data and fine-tuning: pairs, hard negatives, generator examples, and the retriever."""
