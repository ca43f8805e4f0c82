"""The intents of an artifact as rows beside the session graphs."""

import numpy as np

from dmsrec_jax.artifacts import SessionIntents
from dmsrec_jax.data.samples import ragged
from dmsrec_jax.graphs import IntentRows


def intent_rows(of_part: SessionIntents, embeddings: np.ndarray, rows: np.ndarray | None = None) -> IntentRows:
    """Interleaves explicit and latent lists of n sessions, and adds the empty session.

    Args:
      of_part: the intents of one part of a data set.
      embeddings: float16 or float32 [n_intents, d_text].
      rows: int [n], the sessions wanted; all if left out.
    """
    rows = np.arange(len(of_part.explicit.offsets) - 1) if rows is None else rows
    explicit, latent = of_part.explicit, of_part.latent
    ids = np.concatenate([explicit.ids, latent.ids])
    offsets = np.stack([explicit.offsets, latent.offsets + np.int64(len(explicit.ids))], axis=1)
    starts = offsets[rows].reshape(-1)
    ids, offsets = ragged(ids, starts, offsets[rows + 1].reshape(-1) - starts)
    return IntentRows(np.append(offsets, [offsets[-1]] * 2).astype(np.int32), ids, np.asarray(embeddings))
