"""Cut Cross-Entropy: the loss of a large-vocabulary head without its logits."""

from lossbook.kernels.cross_entropy.advice import HeadAdvice, ScheduleCost, head_advice
from lossbook.kernels.cross_entropy.logsumexp import indexed_dot, linear_logsumexp
from lossbook.kernels.cross_entropy.module import LinearCrossEntropy
from lossbook.kernels.cross_entropy.op import cut_cross_entropy
from lossbook.kernels.cross_entropy.parallel import VocabParallel
from lossbook.kernels.cross_entropy.sparsity import softmax_sparsity

__all__ = [
    "HeadAdvice",
    "LinearCrossEntropy",
    "ScheduleCost",
    "VocabParallel",
    "cut_cross_entropy",
    "head_advice",
    "indexed_dot",
    "linear_logsumexp",
    "softmax_sparsity",
]
