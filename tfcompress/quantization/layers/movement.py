"""Operations that move values without arithmetic, and lookups in tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfcompress.integer.role_queries import padding_value
from tfcompress.integer.roles import AVERAGE, JOIN, MOVE, OUTPUT, TABLE, integer_layer


def _resized(layer: Any) -> str:
    return {"nearest": MOVE, "bilinear": AVERAGE}.get(layer.interpolation, OUTPUT)


def _padded(operation: Any) -> str:
    inside = operation.mode != "constant" or padding_value(operation) in (0, -np.inf)
    return MOVE if inside else JOIN


integer_layer(
    "ZeroPadding1D ZeroPadding2D Cropping1D Cropping2D Reshape Flatten Permute Identity Dropout "
    "SpatialDropout1D SpatialDropout2D AlphaDropout GaussianDropout GaussianNoise "
    "ActivityRegularization Transpose Squeeze ExpandDims GetItem",
    role=MOVE,
    int16=True,
)
integer_layer(
    "ZeroPadding3D Cropping3D RepeatVector SpatialDropout3D UpSampling1D UpSampling3D Split Repeat "
    "Tile Flip Roll BroadcastTo Swapaxes Moveaxis Ravel Take TakeAlongAxis Unstack ArraySplit "
    "Slice FoldSteps UnfoldSteps RepeatForBatch",
    role=MOVE,
)
integer_layer("Constant", role=lambda layer: OUTPUT if np.size(layer.value) else MOVE)
integer_layer("UpSampling2D Resizing", role=_resized)
integer_layer("Pad", role=_padded)
integer_layer(
    "ZeroPadding1D ZeroPadding2D Cropping1D Cropping2D UpSampling1D UpSampling2D Dropout "
    "SpatialDropout1D SpatialDropout2D SpatialDropout3D",
    keeps_channels=True,
)
integer_layer("Embedding", role=TABLE)
