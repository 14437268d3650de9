"""The model card of a tuned generator."""

from collections.abc import Mapping
from typing import Any

from ragbench.training.cards import listed, measured
from ragbench.training.generator import Tuned
from ragbench.training.generator_model import Recipe


def model_card(
    tuned: Tuned,
    recipe: Recipe,
    decision: Mapping[str, Any],
    metrics: Mapping[str, Any],
    parameters: Mapping[str, Any],
    data: Mapping[str, Any],
) -> str:
    """Return the card in Markdown; every number in it was measured in the run that wrote it.

    Args:
        metrics: the ``systems`` of a metrics.json: ``base`` and ``generator`` on dev and ood.
        data: the facts of the training data (`ragbench.training.card.facts`).
    """
    name = recipe.model.rpartition("/")[2]
    examples = ", ".join(f"{count} {kind}" for kind, count in data["generator examples"].items())
    whole = recipe.method == "full"
    return f"""---
library_name: {"transformers" if whole else "peft"}
base_model: {recipe.model}
---

# {name}, tuned on {data["collection"]}

{decision["reason"]} {" ".join(decision["notes"])}

Answers a question from passages in the prompt it was trained with: an instruction, numbered passages with their ids,
the question. It cites by id in brackets, and says so when the passages do not tell.

```python
{_LOAD[whole].format(model=recipe.model)}
```

{measured(metrics, "generator")}

## The training

Examples (train and dev): {examples}. {tuned.steps} steps of {tuned.seconds:.0f} seconds together, looks at dev
included; learning rate {tuned.learning_rate:g}, {tuned.epochs:g} epochs, {tuned.trained:,} numbers trained; best at
step {tuned.best_step}.

{listed(parameters)}
"""


_LOAD = {
    True: """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")""",
    False: """from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("path/to/{model}")
model = PeftModel.from_pretrained(base, "path/to/this/folder")""",
}
