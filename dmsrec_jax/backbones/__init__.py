"""Graph backbones by name. One file each: its equations, and the names of its parameters in the released code."""

from types import ModuleType

from dmsrec_jax.backbones import gcegnn, srgnn

BACKBONES: dict[str, ModuleType] = {"srgnn": srgnn, "gcegnn": gcegnn}
"""Each module has ``build(settings, item_graph, rngs) -> nnx.Module`` and ``TORCH_KEYS``.

The module's call gives session vectors z_S, [B, d]. One that the released code fuses with intents also has ``RELEASED``
(`layers.ReleasedFusion`), and its nnx module ``parts``, the vectors that are fused.
"""
