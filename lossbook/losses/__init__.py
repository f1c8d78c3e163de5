"""Loss functions of the book's chapters, as pure functions on tensors in the manner of ``torch.nn.functional``.

One file holds one family (``comp_sum.py``, ``contrastive.py``, ...) and lists its public names in ``__all__``.  This
package re-exports all of them flat, so users write ``lossbook.losses.name`` and never the file: a loss can move
between files without breaking anybody.  A new loss is therefore added in three places: its family file, the import
and ``__all__`` below, and one ``Case`` in ``tests/contract/``, which puts it under the contract every loss
keeps (reductions, dtypes, extreme logits, empty batches, error messages, and the formula its docstring displays).
"""

from lossbook.losses._positives import NoPositivesWarning
from lossbook.losses.calibration import correctness_aware_loss
from lossbook.losses.comp_sum import (
    adversarial_comp_sum_loss,
    class_margins,
    comp_sum_loss,
    comp_sum_rho_margin_loss,
)
from lossbook.losses.contrastive import (
    amcl,
    nt_xent,
    nt_xent_decoupled,
    optimal_temperature,
    sup_con,
    temperature_penalty,
)
from lossbook.losses.metric import (
    metric_loss,
    metrix_embed_loss,
    mix_embeddings,
    pair_loss,
    positivity_threshold,
)
from lossbook.losses.multilabel import (
    decoupled_softmax,
    log_soft_topk,
    multilabel_softmax,
    soft_topk,
    soft_topk_loss,
)
from lossbook.losses.replay import hpcr_scale, pcr, pcr_with_pairs, proxy_distillation, relation_distillation
from lossbook.losses.retrieval import (
    info_nce,
    mann_whitney,
    mann_whitney_retrieval,
    ranknet_retrieval,
    siglip,
)
from lossbook.losses.robust import ALDRKLLoss, aldr_kl_lambda, aldr_kl_loss, ldr_kl_loss, normalize_scores

__all__ = [
    "ALDRKLLoss",
    "NoPositivesWarning",
    "adversarial_comp_sum_loss",
    "aldr_kl_lambda",
    "aldr_kl_loss",
    "amcl",
    "class_margins",
    "comp_sum_loss",
    "comp_sum_rho_margin_loss",
    "correctness_aware_loss",
    "decoupled_softmax",
    "hpcr_scale",
    "info_nce",
    "ldr_kl_loss",
    "log_soft_topk",
    "mann_whitney",
    "mann_whitney_retrieval",
    "metric_loss",
    "metrix_embed_loss",
    "mix_embeddings",
    "multilabel_softmax",
    "normalize_scores",
    "nt_xent",
    "nt_xent_decoupled",
    "optimal_temperature",
    "pair_loss",
    "pcr",
    "pcr_with_pairs",
    "positivity_threshold",
    "proxy_distillation",
    "ranknet_retrieval",
    "relation_distillation",
    "siglip",
    "soft_topk",
    "soft_topk_loss",
    "sup_con",
    "temperature_penalty",
]
