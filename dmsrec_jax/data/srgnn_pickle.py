"""``train.txt`` and ``test.txt`` of the SR-GNN family: pickled ``(sequences, targets)``, read without trusting them."""

import io
import itertools
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np

from dmsrec_jax.data.dataset import Sessions
from dmsrec_jax.data.npz import MAX_ITEMS, check_ids
from dmsrec_jax.data.samples import align, infer_chains, longest
from dmsrec_jax.data.write import Prepared
from dmsrec_jax.errors import InputError

_FILES = ("train.txt", "test.txt", "all_train_seq.txt")
_OPCODES = re.compile(
    "PROTO|FRAME|STOP|MARK|POP|POP_MARK|DUP|EMPTY_LIST|LIST|APPENDS?|EMPTY_TUPLE|TUPLE[123]?"
    "|INT|BININT[12]?|LONG1?|(LONG_)?(BIN)?(PUT|GET)|MEMOIZE"
)
"""All it takes to pickle lists and tuples of integers, in any protocol."""


def read_pickles(raw: Path) -> Prepared:
    """Reads a folder of SR-GNN pickles; rows keep their order.

    ``train.txt`` and ``test.txt`` hold (sequences, targets). ``all_train_seq.txt``, where present, holds the whole
    training sessions; where absent they are put together from the training rows.

    Raises:
      InputError: a file is missing, truncated or foreign, holds anything but lists, tuples and integers, or has
        another structure; an id is out of range; or a training row is no prefix of a whole session.
    """
    train, test = _read_rows(raw / "train.txt"), _read_rows(raw / "test.txt")
    inputs = tuple(file for name in _FILES if (file := raw / name).exists())
    if len(inputs) == len(_FILES):
        whole = inputs[-1]
        sessions = _sessions(load(whole), whole, whole.stat().st_size)
        train_rows, form = align(*train, sessions, str(raw / "train.txt"))
        note = f"training rows: {form}"
    else:
        train_rows = infer_chains(*train)
        sessions = longest(train_rows)
        note = f"whole sessions put together from the training rows: {len(sessions):,} from {len(train_rows):,}"
    n_items = int(max(rows.items.max() for rows in (sessions, test[0])))
    n_items = max(n_items, int(test[1].max()))
    test_rows = infer_chains(*test, prefixed=len(train_rows) > len(sessions))
    return Prepared(train_rows, test_rows, sessions, [str(i) for i in range(1, n_items + 1)], None, (note,), inputs)


def load(path: Path) -> Any:
    """The nested lists, tuples and integers of a pickle.

    The opcodes are read through before anything is built: none may name, build or call anything else.

    Raises:
      InputError: the file is missing, truncated or foreign, or holds anything else.
    """
    try:
        data = path.read_bytes()
        for opcode, argument, position in pickletools.genops(data):
            if not _OPCODES.fullmatch(opcode.name):
                raise InputError(
                    f"{path}: byte {position} has opcode {opcode.name}; only lists, tuples and integers are read"
                )
            # A memo index sizes a table, so one beyond the file's own length is an attack, not data.
            if "PUT" in opcode.name and int(argument or 0) > len(data):
                raise InputError(f"{path}: byte {position} has a memo index beyond the file")
        return _DataUnpickler(io.BytesIO(data)).load()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (
        pickle.UnpicklingError,
        ValueError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as error:
        raise InputError(f"{path}: not a whole pickle: {error}") from None
    except MemoryError:
        raise InputError(f"{path}: claims more memory than there is") from None


class _DataUnpickler(pickle.Unpickler):
    """Refuses every class and function, should one get past the opcodes."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"refused {module}.{name}")


def _read_rows(path: Path) -> tuple[Sessions, np.ndarray]:
    pair = load(path)
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(part, list | tuple) for part in pair):
        raise InputError(f"{path}: a pair (sequences, targets) is due")
    size = path.stat().st_size
    rows, targets = _sessions(pair[0], path, size), _integers(pair[1], f"{path}: targets")
    if len(rows) != len(targets):
        raise InputError(f"{path}: {len(rows)} sequences but {len(targets)} targets")
    return rows, targets


def _sessions(sequences: Any, path: Path, size: int) -> Sessions:
    """``sequences`` in CSR form; ``size`` is the file's, which bounds what repeated references can blow up to."""
    if not isinstance(sequences, list | tuple) or not sequences:
        raise InputError(f"{path}: a list of sequences is due")
    wrong = next((i for i, s in enumerate(sequences) if not isinstance(s, list | tuple) or not s), None)
    if wrong is not None:
        raise InputError(f"{path}: sequence {wrong} is no list of items")
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    if lengths.sum() > size:
        raise InputError(f"{path}: claims {lengths.sum()} clicks in {size} bytes")
    items = _integers(itertools.chain.from_iterable(sequences), f"{path}: clicks")
    return Sessions(items, np.concatenate([[0], np.cumsum(lengths)]))


def _integers(values: Any, source: str) -> np.ndarray:
    try:
        return check_ids(np.fromiter(values, np.int64), MAX_ITEMS, source)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{source}: an item id is no integer of 64 bits") from None
