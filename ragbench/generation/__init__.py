"""From a question and its passages to an answer: prompts, backends, the answer cache."""
