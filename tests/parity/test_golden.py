"""Scores, losses, gradients and one optimiser step of the original models, within the tolerances of their schema."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dmsrec_jax.alignment import ALIGNMENTS
from dmsrec_jax.backbones import own_score
from dmsrec_jax.graphs import SessionBatch, pack
from dmsrec_jax.layers import unit
from dmsrec_jax.model import Hyper
from dmsrec_jax.steps import apply_adam, initial_state
from tests.parity import golden

LR = 1e-3
L2 = {"msgifsr": 1e-4, "share": 0.0, "dhcn": 0.0, "miasrec": 0.0}
"""As the repository's optimiser has it, where it is not 1e-5."""
PLAIN = golden.files("plain")
FUSED = golden.files("fused")


def hyper(weight: float, l2: float = 0.0) -> Hyper:
    kl = list(ALIGNMENTS).index("kl")
    return Hyper(LR, 0.1, 3, 3, l2, align=kl, align_weight=weight, alpha=1.0, beta=1.0)


def outputs(file: golden.Golden, weight: float):
    """Scores, loss terms and gradients for one weight of the alignment."""

    @jax.jit
    def compute(weights: tuple[nnx.State, nnx.State]):
        def loss(weights: tuple[nnx.State, nnx.State]):
            model = nnx.merge(file.graphdef, *weights, file.constants)
            batch = pack(file.graphs, jnp.arange(file.graphs.n_sessions), file.budget)
            recommendation, alignment = model.loss(batch, hyper(weight))
            vectors = model.item_vectors()
            sessions = model.represent(vectors, batch)
            found = {"ce_loss": recommendation / batch.n_sessions, "scores": model(batch)[:, 1:]}
            found["session_repr"], _, fused = sessions
            if file.name in ("msgifsr", "miasrec"):
                found |= with_row_0(model.score(sessions, vectors), batch)
            if file.name == "msgifsr":
                found["scores"] = jax.nn.log_softmax(found["scores"], axis=1)
                found["session_repr"] = unit(sessions.z).reshape(batch.n_sessions, -1, sessions.z.shape[1])
            if fused is not None:
                found["structural"] = fused.structural[0]
                found["align_explicit"], found["align_latent"] = model.align(fused, hyper(weight))
            return found["ce_loss"] + alignment, found

        return jax.grad(loss, has_aux=True)(weights)

    gradients, found = compute(file.weights)
    return found, gradients


def with_row_0(scores: jax.Array, batch: SessionBatch) -> dict[str, jax.Array]:
    """Scores and loss of the code whose softmax counts the unused id 0 as an item."""
    at_target = jnp.take_along_axis(jax.nn.log_softmax(scores, axis=1), batch.target[:, None], axis=1)
    return {"ce_loss": -at_target.mean(), "scores": scores}


@pytest.fixture(scope="module", params=PLAIN + FUSED)
def case(request):
    """A golden file with this project's outputs and gradients for it, at the repository's own weight."""
    file = golden.load(request.param)
    return file, *outputs(file, float(file.arrays.get("coefficient", 0.0)))


def test_session_vectors_and_scores(case):
    file, found, _ = case
    for name in ("session_repr", "scores", "structural"):
        if name in found and name in file.arrays:
            atol = 5e-5 if name == "scores" and own_score(file.name) == "cosine" else 1e-5
            np.testing.assert_allclose(found[name], file.arrays[name], atol=atol, err_msg=name)


def test_losses(case):
    file, found, _ = case
    for name in ("ce_loss", "align_explicit", "align_latent"):
        if name in found:
            assert float(found[name]) == pytest.approx(float(file.arrays[name]), abs=1e-5), name


def check_gradients(file: golden.Golden, gradients, prefix: str) -> None:
    for key, ours in file.in_torch_layout(gradients).items():
        np.testing.assert_allclose(ours, file.arrays[f"{prefix}/{key}"], atol=1e-5, rtol=1e-3, err_msg=key)


def test_gradients(case):
    file, _, gradients = case
    check_gradients(file, gradients, "grad")


@pytest.mark.parametrize("path", FUSED)
def test_gradients_with_half_the_alignment(path):
    """Where the repository's own weight is 0."""
    file = golden.load(path)
    if "grad_c0.5/w" not in file.arrays:
        pytest.skip(f"{path.name}: its alignment has a weight already")
    check_gradients(file, outputs(file, 0.5)[1], "grad_c0.5")


def test_every_parameter_is_ours(case):
    file, *_ = case
    theirs = {key.removeprefix("param/") for key in file.arrays if key.startswith("param/")}
    assert theirs - set(file.arrays["no_grad_keys"].tolist()) == set(file.keys)


def test_weights_that_the_optimiser_misses_are_fixed(case):
    file, *_ = case
    missed = set(file.arrays["not_in_optimizer"].tolist()) - {""}
    fixed = {path for path, _ in nnx.to_flat_state(file.weights[1])} - {("semantics", "takes_part")}
    assert fixed == {tuple(file.keys[key].removesuffix(".T").split(".")) for key in missed & file.keys.keys()}


def test_one_optimiser_step(case):
    file, _, (gradients, _) = case
    params, fixed = file.weights
    l2 = L2.get(file.name, 1e-5)
    state = initial_state(params, hyper(0.0, l2), jax.random.key(0))
    after, _ = jax.jit(apply_adam)(state, gradients, jnp.float32(LR))
    before = file.in_torch_layout(file.weights)
    for key, ours in file.in_torch_layout((after, fixed)).items():
        theirs = file.arrays[f"adam1/{key}"]
        # The first Adam step is lr·sign(gradient): where the gradient is noise, so is the step.
        settled = np.abs(file.arrays[f"grad/{key}"] + l2 * before[key]) > 1e-6
        np.testing.assert_allclose(ours[settled], theirs[settled], atol=1e-5, err_msg=key)
        # Where there is no gradient at all it is L2 alone that moves a weight, and without L2 nothing does.
        quiet = (np.abs(file.arrays[f"grad/{key}"]) < 1e-9) & (np.abs(before[key]) > 1e-2)
        np.testing.assert_allclose(ours[quiet], theirs[quiet], atol=0.2 * LR, err_msg=key)
        np.testing.assert_allclose(ours, theirs, atol=2 * LR, err_msg=key)
