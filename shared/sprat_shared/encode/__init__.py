"""Making update files from two finished sets of weights, where there is no data to train the update with."""

from sprat_shared.encode.delta import Encoded, TensorReport, encode_delta, encode_full

__all__ = ["Encoded", "TensorReport", "encode_delta", "encode_full"]
