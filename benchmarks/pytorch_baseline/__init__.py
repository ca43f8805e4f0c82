"""The backbones in PyTorch, twice each: at the cost of the released code, and as fast as we could make them.

One file per backbone, written from the published descriptions. Parameters have the names and shapes of the original
repositories' state dicts.

Released: what makes the originals slow is kept on purpose. A batch's graphs are rebuilt from its clicks each time, in
Python; but for MSGIFSR they are dense matrices, and all sessions as wide as the longest.
Tuned: flat packed batches without padding, each product taken over as few rows as the equations allow.
"""
