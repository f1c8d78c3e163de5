"""Models of Hugging Face Transformers with the kernels of this package inside.

Importing this package does not import ``transformers``.
"""

from lossbook.integrations.transformers.calibration import Calibration, calibrate, overlap
from lossbook.integrations.transformers.double_sparsity import (
    DoubleSparsityConfig,
    attach_calibration,
    detach_calibration,
    register_double_sparsity,
)
from lossbook.integrations.transformers.loss import patch, unpatch

__all__ = [
    "Calibration",
    "DoubleSparsityConfig",
    "attach_calibration",
    "calibrate",
    "detach_calibration",
    "overlap",
    "patch",
    "register_double_sparsity",
    "unpatch",
]
