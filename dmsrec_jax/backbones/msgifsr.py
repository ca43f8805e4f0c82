"""MSGIFSR: Learning Multi-granularity Consecutive User Intent Unit for SBR (Guo et al., WSDM 2022).

Its scores are cosines of unit vectors, whatever --score. With one order it is the form that the LLM-DMsRec repository
runs; with more it adds consecutive intent units, their own softmax for in-session items and the mixture of orders, as
the original does. Equations (M·) and where the released code differs from the paper: docs/backbones.md.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dmsrec_jax.backbones.kgrams import Runs, Transitions, session_graph
from dmsrec_jax.graphs import SessionBatch, segment_softmax, segment_sum
from dmsrec_jax.layers import (
    Backbone,
    Rate,
    Reading,
    ReleasedFusion,
    Settings,
    Unpenalised,
    dropout,
    gated_cell,
    linear,
    parameter,
    split_key,
    unit,
)

SCALE = 12.0
"""Factor on its cosine scores."""
RATES = ("feature_dropout",)
HEADS = 8
SLOPE = 0.2
ORDERS = 3
LOW = -1e9
"""In place of -inf, whose gradients are NaN where nothing else is summed."""


def _torch_keys() -> dict[str, str]:
    """Keys of all orders; a model has those of its own."""
    keys = {"embeddings.weight": "items", "alpha": "backbone.alpha"}
    convolutions = [(f"intra{k}", f"order_{k}.intra") for k in range(1, ORDERS + 1)] + [("inter", "inter")]
    for name, path in convolutions:
        for conv, way in (("conv1", "forward"), ("conv2", "backward")):
            theirs, ours = f"layers.0.{conv}.mods.{name}", f"backbone.{path}_{way}"
            keys |= {f"{theirs}.fc.weight": f"{ours}.w.T", f"{theirs}.bias": f"{ours}.bias"}
            keys |= {f"{theirs}.attn_l": f"{ours}.of_sender", f"{theirs}.attn_r": f"{ours}.of_receiver"}
    for k in range(1, ORDERS + 1):
        for name in ("fc_u", "fc_v", "fc_e"):
            keys[f"readout.{name}.{k - 1}.weight"] = f"backbone.order_{k}.{name}.kernel.T"
        keys[f"readout.fc_u.{k - 1}.bias"] = f"backbone.order_{k}.fc_u.bias"
        keys[f"fc_sr.{k - 1}.weight"] = f"backbone.order_{k}.fc_sr.kernel.T"
    for k in range(2, ORDERS + 1):
        for theirs, ours in (("ih", "input"), ("hh", "hidden")):
            keys[f"expander.GRUs.{k - 2}.weight_{theirs}_l0"] = f"backbone.order_{k}.gates_{ours}.kernel.T"
            keys[f"expander.GRUs.{k - 2}.bias_{theirs}_l0"] = f"backbone.order_{k}.gates_{ours}.bias"
    keys |= {"sc_sr.0.0.weight": "backbone.share_1.kernel.T", "sc_sr.0.0.bias": "backbone.share_1.bias"}
    return keys | {"sc_sr.0.2.weight": "backbone.share_2.kernel.T"}


TORCH_KEYS = _torch_keys()
RELEASED = ReleasedFusion(
    parts=2,
    bias=True,
    weight=0.0,
    dropout=0.0,
    trains_projection=True,
    fuses=False,
    aligned=(1, 0),
    penalises_bias=False,
)


class GraphAttention(nnx.Module):
    """One kind of edge's attention, (M3): GAT (Veličković et al., ICLR 2018), the receiver added to each head."""

    def __init__(self, d: int, *, rngs: nnx.Rngs) -> None:
        self.w = parameter(d, d, HEADS * d, rngs=rngs)
        self.of_sender = parameter(d, 1, HEADS, d, rngs=rngs)
        self.of_receiver = parameter(d, 1, HEADS, d, rngs=rngs)
        self.bias = parameter(d, HEADS * d, rngs=rngs)

    def __call__(
        self,
        sources: Float[Array, "sources d"],
        sinks: Float[Array, "sinks d"],
        senders: Int[Array, "edges"],
        receivers: Int[Array, "edges"],
        rate: Rate,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "sinks heads d"]:
        """Σ_u α_uv W x_u + x_v + b for each sink v and head; without edges x_v + b."""
        (n, d), keys = sinks.shape, split_key(key, 3)
        sources, sinks = dropout(sources, rate, keys[0]), dropout(sinks, rate, keys[1])
        w = self.w[...].reshape(d, HEADS, d)
        by_sender = sources @ jnp.einsum("ihj,hj->ih", w, self.of_sender[0])
        by_receiver = sinks @ jnp.einsum("ihj,hj->ih", w, self.of_receiver[0])
        logits = jax.nn.leaky_relu(by_sender[senders] + by_receiver[receivers], SLOPE)
        alpha = dropout(segment_softmax(logits, receivers, n), rate, keys[2])
        # Mapped before they are mixed: twice as fast on a CPU as the other way round, where each head has its product.
        mapped = (sources @ self.w[...]).reshape(-1, HEADS, d)
        mixed = segment_sum(alpha[:, :, None] * mapped[senders], receivers, n)
        return mixed + sinks[:, None, :] + self.bias[...].reshape(HEADS, d)


class Order(nnx.Module):
    """What belongs to intent units of one length: how they are formed, linked and read out."""

    def __init__(self, d: int, k: int, *, rngs: nnx.Rngs) -> None:
        self.intra_forward = GraphAttention(d, rngs=rngs)
        self.intra_backward = GraphAttention(d, rngs=rngs)
        self.fc_u = linear(d, d, d, rngs=rngs)
        self.fc_v = linear(d, d, d, rngs=rngs, use_bias=False)
        self.fc_e = linear(d, d, 1, rngs=rngs, use_bias=False)
        self.fc_sr = linear(d, 2 * d, d, rngs=rngs, use_bias=False)
        if k > 1:
            self.gates_input = linear(d, d, 3 * d, rngs=rngs)
            self.gates_hidden = linear(d, d, 3 * d, rngs=rngs)

    @property
    def intra(self) -> tuple[GraphAttention, GraphAttention]:
        """Between units of this length, along the clicks and against them."""
        return self.intra_forward, self.intra_backward

    def intent_units(self, e: Float[Array, "nodes d"], clicks: Int[Array, "rows k"]) -> Float[Array, "rows d"]:
        """Half the mean of the clicks' vectors, half a GRU's last state over them, of length one: (M1), (M2)."""
        if clicks.shape[1] == 1:
            return unit(e[clicks[:, 0]])
        gates = self.gates_input(e)
        h = jnp.zeros((len(clicks), e.shape[1]))
        for at in clicks.T:
            h = gated_cell(gates[at], self.gates_hidden(h), h)
        return unit(0.5 * e[clicks].mean(axis=1) + 0.5 * h)


class MSGIFSR(Backbone):
    """Graph attention over intent units of 1 to ``order`` clicks; one session vector per order."""

    def __init__(self, d: int, order: int, *, rngs: nnx.Rngs) -> None:
        for k in range(1, order + 1):
            setattr(self, f"order_{k}", Order(d, k, rngs=rngs))
        if order > 1:
            self.inter_forward = GraphAttention(d, rngs=rngs)
            self.inter_backward = GraphAttention(d, rngs=rngs)
            self.share_1 = linear(d, d, d, rngs=rngs)
            self.share_2 = linear(d, d, 2, rngs=rngs, use_bias=False)
            self.alpha = nnx.Param(jnp.zeros(order).at[0].set(1.0))

    @property
    def orders(self) -> list[Any]:
        return [getattr(self, f"order_{k}") for k in range(1, ORDERS + 1) if hasattr(self, f"order_{k}")]

    @property
    def inter(self) -> tuple[GraphAttention, GraphAttention]:
        """Between items and longer units, along the clicks and against them."""
        return self.inter_forward, self.inter_backward

    def __call__(
        self,
        item_vectors: Float[Array, "items d"],
        batch: SessionBatch,
        *,
        feature_dropout: Float[Array, ""] | float | None = None,
        key: PRNGKeyArray | None = None,
        **_: object,
    ) -> Reading:
        """Session vectors, one per order: rows b · orders + k - 1; dropout only where a key is given."""
        unit_key, graph_key = split_key(key)
        runs, transitions = session_graph(batch, len(self.orders))
        x = self.intent_units(item_vectors[batch.graph.nodes], runs, feature_dropout, unit_key)
        h = self.propagate(x, runs, transitions, batch.n_sessions, feature_dropout, graph_key)
        local, context = self.read_out(h, runs, batch.n_sessions)
        both = jnp.concatenate([local, context], axis=-1)
        z = jnp.stack([order.fc_sr(of) for order, of in zip(self.orders, both, strict=True)], axis=1)
        parts = local[0], context[0]
        if len(self.orders) == 1:
            return Reading(z[:, 0], parts)
        owners = jnp.repeat(jnp.arange(batch.n_sessions), len(self.orders))
        return Reading(z.reshape(len(owners), -1), parts, owners, batch.seen(len(item_vectors)))

    def intent_units(
        self, e: Float[Array, "nodes d"], runs: list[Runs], rate: Rate, key: PRNGKeyArray | None
    ) -> list[Float[Array, "_ d"]]:
        """Unit vectors of the nodes of each order."""
        keys = split_key(key, len(runs))
        by_order = zip(self.orders, runs, keys, strict=True)
        return [order.intent_units(dropout(e, rate, own), nodes.clicks) for order, nodes, own in by_order]

    def propagate(
        self,
        x: list[Float[Array, "_ d"]],
        runs: list[Runs],
        transitions: list[Transitions],
        n: int,
        rate: Rate,
        key: PRNGKeyArray | None,
    ) -> list[Float[Array, "_ d"]]:
        """Attention along all transitions and against them; maximum of heads, plus the session's mean: (M4), (M5)."""
        heads: list[Any] = [0.0] * len(x)
        for transition, own in zip(transitions, split_key(key, len(transitions)), strict=True):
            i, j, senders, receivers = transition
            forward, backward = self.inter if i != j else self.orders[i - 1].intra
            keys = split_key(own, 2)
            heads[j - 1] += forward(x[i - 1], x[j - 1], senders, receivers, rate, keys[0])
            heads[i - 1] += backward(x[j - 1], x[i - 1], receivers, senders, rate, keys[1])
        return [
            unit(many.max(axis=1) + _session_mean(own, nodes.session, n))
            for many, own, nodes in zip(heads, x, runs, strict=True)
        ]

    def read_out(
        self, h: list[Float[Array, "_ d"]], runs: list[Runs], n: int
    ) -> tuple[Float[Array, "orders B d"], Float[Array, "orders B d"]]:
        """For each order its last unit, and all units of the session as it attends to them: (M6) to (M8)."""
        rows, session = jnp.concatenate(h), jnp.concatenate([nodes.session for nodes in runs])
        local = jnp.stack([own[nodes.last] for own, nodes in zip(h, runs, strict=True)])
        contexts = []
        for order, last in zip(self.orders, local, strict=True):
            query = jnp.pad(order.fc_v(last), ((0, 1), (0, 0)))[session]
            logits = order.fc_e(jax.nn.sigmoid(order.fc_u(rows) + query))
            alpha = segment_softmax(logits, session, n + 1)
            contexts.append(segment_sum(alpha * rows, session, n + 1)[:-1])
        return local, jnp.stack(contexts)

    def score(
        self,
        z: Float[Array, "rows d"],
        reading: Reading,
        item_vectors: Float[Array, "items d"],
        scale: float | None,
    ) -> Float[Array, "B items"]:
        """12 · cosines; with several orders log-probabilities, those of the orders mixed with weights softmax(alpha).

        Each order's are a softmax over the session's own items and one over the others, which its vector weighs:
        (M10), (M11). As released over the whole table, with the unused row 0; `cross_entropy` leaves it out.
        """
        z = unit(z)
        cosines = SCALE * z @ unit(item_vectors).T
        orders = len(self.orders)
        if orders == 1:
            return cosines
        seen = reading.memory[:, None]
        cosines = cosines.reshape(-1, orders, cosines.shape[1])
        of_seen, of_others = (
            jax.nn.logsumexp(jnp.where(which, cosines, LOW), axis=2, keepdims=True) for which in (seen, ~seen)
        )
        shares = jax.nn.log_softmax(self.share_2(jax.nn.relu(self.share_1(z)))).reshape(-1, orders, 2)
        offsets = jnp.where(seen, shares[..., :1] - of_seen, shares[..., 1:] - of_others)
        return jax.nn.logsumexp(cosines + offsets + jax.nn.log_softmax(self.alpha[...])[:, None], axis=1)


def _session_mean(x: Float[Array, "rows d"], session: Int[Array, "rows"], n: int) -> Float[Array, "rows d"]:
    """For each node the mean over its session's nodes."""
    count = segment_sum(jnp.ones(len(x)), session, n + 1)
    return (segment_sum(x, session, n + 1) / jnp.maximum(count, 1)[:, None])[session]


def build(settings: Settings, item_graph: object, rngs: nnx.Rngs) -> MSGIFSR:
    """The backbone for these model settings; it needs no global graph."""
    built = MSGIFSR(settings.d, settings.order, rngs=rngs)
    modules: list[tuple[Any, Any]] = list(nnx.iter_modules(built))
    for _, module in modules:  # as released: L2 leaves biases alone
        if isinstance(getattr(module, "bias", None), nnx.Param):
            module.bias = Unpenalised(module.bias[...])
    return built
