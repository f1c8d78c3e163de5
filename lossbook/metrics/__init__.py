"""Metrics of the book's chapters, on NumPy arrays or CPU tensors.

One file holds one family (``ranking.py``, ``calibration.py``, ...) and lists its public names in ``__all__``; this
package re-exports all of them flat.  Where scikit-learn has a metric, that is what is called.
"""

from lossbook.metrics.calibration import (
    brier_confidence,
    expected_calibration_error,
    ks_calibration_error,
    narrowly_wrong,
)
from lossbook.metrics.collapse import nc1, nc2, nc3, nc4
from lossbook.metrics.learning import continual_summary, peak_height
from lossbook.metrics.multilabel import multilabel_precision_at_k, multilabel_recall_at_k
from lossbook.metrics.ranking import (
    AtomicMistakes,
    atomic_mistakes,
    auprc,
    auprc_from_fpr,
    auroc,
    auroc_from_fpr,
    best_f1,
    fix_mistake,
    mann_whitney_auc,
)
from lossbook.metrics.retrieval import (
    alignment,
    knn_accuracy,
    mrr_at_k,
    ndcg_at_k,
    pooled_retrieval_auc,
    retrieval_recall_at_k,
    uniformity,
    utilization,
)

__all__ = [
    "AtomicMistakes",
    "alignment",
    "atomic_mistakes",
    "auprc",
    "auprc_from_fpr",
    "auroc",
    "auroc_from_fpr",
    "best_f1",
    "brier_confidence",
    "continual_summary",
    "expected_calibration_error",
    "fix_mistake",
    "knn_accuracy",
    "ks_calibration_error",
    "mann_whitney_auc",
    "mrr_at_k",
    "multilabel_precision_at_k",
    "multilabel_recall_at_k",
    "narrowly_wrong",
    "nc1",
    "nc2",
    "nc3",
    "nc4",
    "ndcg_at_k",
    "peak_height",
    "pooled_retrieval_auc",
    "retrieval_recall_at_k",
    "uniformity",
    "utilization",
]
