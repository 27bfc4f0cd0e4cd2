"""Making update files from two finished sets of weights, where there is no data to train the update with."""

from sprat_shared.encode.delta import DEFAULT_RELATIVE_ERROR, Encoded, encode_delta
from sprat_shared.encode.exact import encode_full
from sprat_shared.encode.report import CurvePoint, TensorReport

__all__ = ["DEFAULT_RELATIVE_ERROR", "CurvePoint", "Encoded", "TensorReport", "encode_delta", "encode_full"]
