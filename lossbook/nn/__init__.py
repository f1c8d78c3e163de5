"""Modules that chapters share.

Importing this package needs torch only.
"""

from lossbook.kernels.sparse_attention.baselines import (
    HeavyHitterState,
    heavy_hitter,
    oracle,
    quest,
    random_channels,
    window,
)
from lossbook.nn.attention import SparseDecodeAttention
from lossbook.nn.calibration import TemperatureCalibrator, transformed_features
from lossbook.nn.contrastive import AdaptiveTemperature, MultiHeadProjector
from lossbook.nn.ensemble import Ensemble, ensemble_batches
from lossbook.nn.random_features import (
    RandomFeatures,
    WidthSweepMLP,
    condition_number,
    descent_filter,
    gd_readout,
    preconditioned_gd_readout,
)
from lossbook.nn.ufm import (
    UFMGeometry,
    UnconstrainedFeatureModel,
    collapse_threshold,
    ufm_ce_margin,
    ufm_mse_geometry,
)

__all__ = [
    "AdaptiveTemperature",
    "Ensemble",
    "HeavyHitterState",
    "MultiHeadProjector",
    "RandomFeatures",
    "SparseDecodeAttention",
    "TemperatureCalibrator",
    "UFMGeometry",
    "UnconstrainedFeatureModel",
    "WidthSweepMLP",
    "collapse_threshold",
    "condition_number",
    "descent_filter",
    "ensemble_batches",
    "gd_readout",
    "heavy_hitter",
    "oracle",
    "preconditioned_gd_readout",
    "quest",
    "random_channels",
    "transformed_features",
    "ufm_ce_margin",
    "ufm_mse_geometry",
    "window",
]
