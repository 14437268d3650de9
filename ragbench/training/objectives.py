"""What the generator tells the retriever: losses over the passages that were retrieved for a question.

All take `log_p`, the log of the retriever's distribution over a question's K passages (`passage_log_probs`), and the
generator's log-likelihoods of the expected answer given each passage alone, both of shape (questions, K).
"""

import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.nn import functional

DIRECTIONS = ("to_generator", "to_retriever")
OBJECTIVES = ("distillation", "rag_sequence", "emdr2")


def passage_log_probs(similarities: Tensor, temperature: float) -> Tensor:
    """Return the log-softmax over K of cosine similarities (questions, K) over a temperature.

    Cosines at temperature 1 are nearly uniform and teach nothing; .05 is Sentence Transformers' scale of 20.
    """
    return functional.log_softmax(similarities / temperature, dim=-1)


def rag_sequence(log_p: Tensor, answers: Tensor) -> Tensor:
    """Return the negative marginal log-likelihood of RAG-Sequence (Lewis et al. 2020), the mean over the questions.

    −log Σ_k p(z_k|x) p(y|x,z_k): the passage's term stands once for each answer, not once for each token.

    Args:
        answers: summed log-likelihoods of the answers' tokens. With a gradient, the generator learns too.
    """
    return -torch.logsumexp(log_p + answers, dim=-1).mean()


def emdr2(log_p: Tensor, answers: Tensor) -> Tensor:
    """Return the retriever's loss of EMDR² (Singh et al. 2021): the marginal likelihood, the generator's part fixed."""
    return rag_sequence(log_p, answers.detach())


def target_log_probs(mean_answers: Tensor, temperature: float) -> Tensor:
    """Return the log of the distribution that the generator prefers: a softmax over K of mean log-likelihoods.

    Means, as sums of log-probabilities over a temperature would put everything on one passage or underflow. Detached:
    only the retriever learns from it.
    """
    return functional.log_softmax(mean_answers.detach() / temperature, dim=-1)


def distillation(log_p: Tensor, mean_answers: Tensor, temperature: float, direction: str = "to_generator") -> Tensor:
    """Return perplexity distillation, the mean over the questions.

    Args:
        mean_answers: mean log-likelihoods of the answers' tokens.
        temperature: of the generator's distribution (`target_log_probs`).
        direction: ``to_generator`` for KL(generator ‖ retriever), as Atlas's code has it (Izacard et al. 2022), or
            ``to_retriever`` for KL(retriever ‖ generator), as REPLUG (Shi et al. 2023) and RA-DIT print it.
    """
    target = target_log_probs(mean_answers, temperature)
    fitted, wanted = (log_p, target) if direction == "to_generator" else (target, log_p)
    return functional.kl_div(fitted, wanted, reduction="batchmean", log_target=True)


def entropy(log_p: Tensor) -> float:
    """Return the mean entropy over the questions in nats: near log K nothing is told apart, near 0 all is decided."""
    return float(Categorical(logits=log_p).entropy().mean())
