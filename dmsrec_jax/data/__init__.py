"""Sessions as plain arrays: the dataset folder, raw formats, splits and the embedded demo catalogue."""

from dmsrec_jax.data.dataset import SessionDataset, Sessions, Split

__all__ = ["SessionDataset", "Sessions", "Split"]
