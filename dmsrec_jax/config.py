"""One frozen dataclass per command. tyro turns fields into flags and the strings below them into ``--help``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Backbone = Literal["srgnn", "gcegnn"]
Protocol = Literal["default", "paper"]
Score = Literal["dot", "cosine"]
Semantics = Literal["paper", "released"]
Align = Literal["kl", "contrastive", "infonce", "directau", "none"]
Ablation = Literal["none", "no-latent", "no-explicit"]


DEVICE_DATA_MB = 2048.0
"""Most MB (2^20 bytes) of session graphs kept on a device; larger ones are streamed."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a graph backbone on a dataset folder and score its test set once.

    With --intents it is fused with the intents that `python -m llm_stage.run` read from the sessions' titles. Without
    --dataset it trains on the embedded demo catalogue.
    """

    backbone: Backbone
    """Which graph neural network."""
    dataset: Path | None = None
    """Dataset folder made by `python -m dmsrec_jax.prepare`; the embedded demo if left out."""
    out: Path | None = None
    """Run folder; runs/<dataset>-<backbone>-<seed> if left out."""
    config: Path | None = None
    """YAML file of defaults for these flags, such as configs/ml-1m/gcegnn.yaml; flags override it."""

    batch_size: int = 100
    """Sessions per optimiser step, over all devices together."""
    epochs: int = 30
    """Most epochs to train; --patience may end it earlier."""
    patience: int = 3
    """Default protocol: stop after this many epochs without a better validation MRR@20."""
    lr: float = 1e-3
    """Adam's learning rate."""
    lr_decay: float = 0.1
    """Factor on the learning rate at each decay."""
    lr_decay_every: int = 3
    """Epochs between decays."""
    lr_first_decay: int | None = None
    """Epochs before the first decay; --lr-decay-every if left out (the released SR-GNN decays first after 2)."""
    l2: float = 1e-5
    """L2 penalty, added to the gradient as torch's Adam does."""

    d: int = 100
    """Hidden size."""
    score: Score = "dot"
    """dot: session vector · item vectors, as published. cosine: unit vectors × 12, items unit on input too."""
    dropout_global: float = 0.5
    """gcegnn: dropout on the global-graph part."""
    dropout_local: float = 0.0
    """gcegnn: dropout on the session-graph part."""
    n_neighbors: int = 12
    """gcegnn: neighbours kept per item in the global graph."""

    intents: Path | None = None
    """Intents folder of this dataset: fuses the backbone with them (LLM-DMsRec). Left out: the plain backbone."""
    item_text: Path | None = None
    """Folder of encoded titles made by `python -m llm_stage.encode_items`: item vector = id embedding + W · title."""
    semantics: Semantics = "paper"
    """paper: intents projected and fused as the paper's equations say. released: as the published code computes."""
    align: Align = "kl"
    """What draws structural and semantic intents together; none leaves the term out, as --align-weight 0 does."""
    align_weight: float | None = None
    """λ, the weight of the alignment in the loss; 0.7 if left out, with --semantics released the backbone's own."""
    alpha: float = 1.0
    """α, the weight of explicit intents in the alignment."""
    beta: float = 1.0
    """β, the weight of latent intents in the alignment."""
    ablation: Ablation = "none"
    """Intents to leave out (the paper's Table 3)."""
    semantic_dropout: float | None = None
    """Dropout on the encoded intents; 0 if left out, with --semantics released the backbone's own."""
    intent_dropout: float = 0.0
    """Share of sessions that training treats as if no LLM had read them, so that `recommend` works without one."""

    protocol: Protocol = "default"
    """default: the last 10 % of training sessions choose the epoch and test is scored once.
    paper: no validation, best epoch per metric on the test set, as the released code reports."""
    validation_fraction: float = 0.1
    """Default protocol: share of training sessions, the last ones, that validate."""
    seed: int = 0
    """Seed of initial values, batches and dropout."""
    devices: int | None = None
    """Devices to train on (data parallel); all that jax sees if left out."""
    device_data_mb: float = DEVICE_DATA_MB
    """Session graphs of more MB than this stay on the host and are sent ahead in chunks; results are the same."""

    resume: bool = False
    """Go on from the last checkpoint of --out."""
    overwrite: bool = False
    """Replace a run that is there already."""
    tensorboard: bool = False
    """Also write TensorBoard curves (needs the extra `tensorboard`)."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Report HR, MRR and NDCG of a run on its test set, with chain-clustered bootstrap intervals."""

    run: Path
    """Run folder of `train`, `import_torch` or `neighbors`."""
    compare: Path | None = None
    """Second run on the same test set: paired differences RUN − COMPARE."""
    dataset: Path | None = None
    """Dataset folder, where the run's own has moved."""
    bootstrap: int = 1000
    """Bootstrap resamples."""
    seed: int = 0
    """Seed of the bootstrap."""


@dataclass(frozen=True)
class CandidatesConfig:
    """Write the top items of every training and test session: the candidate sets of the LLM stage."""

    run: Path
    """Run folder of a trained or imported model."""
    out: Path
    """Folder for train_candidates.npy and test_candidates.npy."""
    k: int = 50
    """Candidates per session."""
    exclude_seen: bool = False
    """Leave out the session's own items."""
    dataset: Path | None = None
    """Dataset folder, where the run's own has moved."""
    intents: Path | None = None
    """A fused run's intents folder, where its own has moved."""
    overwrite: bool = False
    """Replace files that are there already."""


@dataclass(frozen=True)
class RecommendConfig:
    """Print the items most likely to be clicked next after a session."""

    run: Path
    """Run folder of a trained or imported model."""
    session: str
    """The clicks so far, oldest first, as titles or item ids separated by ';'."""
    k: int = 20
    """How many items to print."""
    exclude_seen: bool = True
    """Leave out the session's own items."""
    dataset: Path | None = None
    """Dataset folder, where the run's own has moved."""


@dataclass(frozen=True)
class ImportTorchConfig:
    """Turn weights of the original repositories into a run folder."""

    backbone: Backbone
    """Which graph neural network the weights belong to."""
    weights: Path
    """State dict: .npz, .safetensors, or .pth (loaded with weights_only=True; needs torch)."""
    dataset: Path
    """Dataset folder the weights were trained on."""
    out: Path
    """Run folder to write."""
    n_neighbors: int = 12
    """gcegnn: neighbours kept per item in the global graph."""
    overwrite: bool = False
    """Replace a run that is there already."""


@dataclass(frozen=True)
class NeighborsConfig:
    """Score the non-neural references: POP, ItemKNN, sequential rules, V-SKNN and STAN."""

    dataset: Path
    """Dataset folder."""
    out: Path
    """Folder for one run folder per method."""
    methods: tuple[str, ...] = ("pop", "itemknn", "sr", "vsknn", "stan")
    """Which methods: pop, itemknn, sr (sequential rules), vsknn, stan."""
    validation_fraction: float = 0.1
    """Share of training sessions, the last ones, on which each method's settings are chosen."""
    overwrite: bool = False
    """Replace runs that are there already."""


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """What every source of `prepare` takes."""

    out: Path
    """Dataset folder to write."""
    name: str | None = None
    """Name of the data set; the folder's name if left out."""
    overwrite: bool = False
    """Replace a dataset that is there already."""


@dataclass(frozen=True, kw_only=True)
class PrepareNpz(Prepare):
    """sessions.npz (rows, targets and whole sessions as integer arrays) with titles.json beside it."""

    raw: Path
    """sessions.npz, or the folder that holds it."""


@dataclass(frozen=True, kw_only=True)
class PreparePickle(Prepare):
    """train.txt and test.txt as the SR-GNN family of repositories writes them; all_train_seq.txt is used if there."""

    raw: Path
    """Folder of the pickles. They may hold lists, tuples and integers, nothing else."""


@dataclass(frozen=True, kw_only=True)
class PrepareDemo(Prepare):
    """The embedded demo: a generated shop of 300 products whose sessions mix two needs. Needs no file."""

    seed: int = 0
    """Seed of the generated sessions."""


@dataclass(frozen=True, kw_only=True)
class PrepareMovieLens(Prepare):
    """MovieLens-1M: the GroupLens folder. One session per user and sitting; the last tenth by time tests."""

    raw: Path
    """Folder with ratings.dat and movies.dat."""
    gap: bool = False
    """End a session 300 s after the previous rating (the paper's wording), not after its first (as released)."""
    augment_prefixes: bool = False
    """Train on every prefix of a session, not only on its last click."""
    skip_bad_rows: bool = False
    """Count and report bad rows instead of stopping at the first."""


@dataclass(frozen=True, kw_only=True)
class PrepareAmazon(Prepare):
    """Amazon 2014 reviews (5-core): one session per user, all its prefixes, split by user."""

    raw: Path
    """Folder with one reviews_*_5.json.gz and the meta_*.json.gz of its category."""
    test_fraction: float = 0.1
    """Share of users, the last ones, that test."""
    skip_bad_rows: bool = False
    """Count and report bad lines instead of stopping at the first."""


@dataclass(frozen=True, kw_only=True)
class PrepareLog(Prepare):
    """What the click logs take."""

    raw: Path
    """The click log: one row per click."""
    session_col: str = "session_id"
    """Column of the session (or visit, or user) id."""
    item_col: str = "item_id"
    """Column of the item id."""
    time_col: str = "timestamp"
    """Column of the click's time: seconds or milliseconds since 1970, or ISO 8601 (UTC unless it says otherwise)."""
    titles: Path | None = None
    """CSV file with a title for each item: columns as --item-col and `title`."""

    min_item_count: int = 5
    """First, drop items with fewer clicks than this."""
    min_session_len: int = 2
    """Then drop sessions with fewer clicks than this."""
    test_fraction: float | None = None
    """Share of sessions, the last ones by their last click, that test; 0.1 unless --test-days is given."""
    test_days: float | None = None
    """Sessions that end within the log's last DAYS days test."""
    augment_prefixes: bool = False
    """Train on every prefix of a session, not only on its last click. Test rows stay one per session."""
    skip_bad_rows: bool = False
    """Count and report bad rows instead of stopping at the first."""


@dataclass(frozen=True, kw_only=True)
class PrepareCsv(PrepareLog):
    """A click log in CSV with a header line."""

    separator: str = ","
    """The character between fields; `tab` for tabs."""


@dataclass(frozen=True, kw_only=True)
class PrepareParquet(PrepareLog):
    """A click log in Parquet."""
