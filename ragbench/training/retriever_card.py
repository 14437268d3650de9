"""The model card of a tuned retriever."""

from collections.abc import Mapping
from typing import Any

from ragbench.training.cards import listed, measured
from ragbench.training.retriever import Recipe, Tuned


def model_card(
    tuned: Tuned,
    recipe: Recipe,
    decision: Mapping[str, Any],
    metrics: Mapping[str, Any],
    parameters: Mapping[str, Any],
    data: Mapping[str, Any],
) -> str:
    """Return the card in Markdown; every number in it was measured in the run that wrote it."""
    sources = ", ".join(f"{count} {source}" for source, count in data["pairs"].items())
    name = recipe.model.rpartition("/")[2]
    tuned_on = f"{name}, tuned on {data['collection']}"
    title = (
        tuned_on if decision["kept"] == "tuned" else f"{name} as it came: tuning on {data['collection']} was discarded"
    )
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
---

# {title}

{decision["reason"]} {" ".join(decision["notes"])}

Encodes questions and passages (title, a space, text; at most {recipe.max_tokens} tokens) for dense retrieval by cosine.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
```

{measured(metrics, "retriever")}

## The training

{sum(data["pairs"].values())} pairs ({sources}) over {data["passages"]} passages, in {tuned.steps} steps of
{tuned.seconds:.0f} seconds together; learning rate {tuned.learning_rate:g}; best at step {tuned.best_step}.
The tuned weights are a blend, {tuned.blend:.0%} of it tuned and the rest the base model's.

{listed(parameters)}
"""
