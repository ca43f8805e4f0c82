"""The intents of an artifact as rows beside the session graphs."""

import numpy as np

from dmsrec_jax.artifacts import IntentLists, SessionIntents
from dmsrec_jax.graphs import IntentRows


def intent_rows(sessions: SessionIntents, embeddings: np.ndarray, rows: np.ndarray | None = None) -> IntentRows:
    """Interleaves the explicit and latent lists of n sessions, and adds the empty session.

    Args:
      sessions: of one part of a data set.
      embeddings: float16 or float32 [n_intents, d_text].
      rows: int [n], the sessions wanted; all if left out.
    """
    n = len(sessions.explicit.offsets) - 1
    rows = np.arange(n) if rows is None else rows
    starts, counts = np.empty((len(rows), 2), np.int64), np.empty((len(rows), 2), np.int64)
    lists: tuple[IntentLists, ...] = (sessions.explicit, sessions.latent)
    for kind, listed in enumerate(lists):
        offsets = np.asarray(listed.offsets, np.int64)
        starts[:, kind], counts[:, kind] = offsets[rows], offsets[rows + 1] - offsets[rows]
    starts[:, 1] += len(lists[0].ids)  # the latent ids follow the explicit ones
    ids = np.concatenate([listed.ids for listed in lists])
    sizes = counts.reshape(-1)
    offsets = np.append(0, np.cumsum(sizes))
    at = np.arange(offsets[-1]) + np.repeat(starts.reshape(-1) - offsets[:-1], sizes)
    offsets = np.append(offsets, [offsets[-1]] * 2)
    return IntentRows(offsets.astype(np.int32), ids[at].astype(np.int32), np.asarray(embeddings))
