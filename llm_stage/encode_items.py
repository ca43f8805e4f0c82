"""``python -m llm_stage.encode_items``: the catalogue's titles as vectors, for title-aware items in training."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress

from dmsrec_jax import cli
from dmsrec_jax.artifacts import write_item_text
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import check_replaceable
from llm_stage.config import EncodeItemsConfig
from llm_stage.encoder import encode_catalogue, load_encoder, stored


def encode_items(config: EncodeItemsConfig) -> None:
    """Writes the item text folder; items without a title get zeros."""
    console = Console(markup=False, highlight=False)
    check_replaceable(config.out, marker="meta.json", overwrite=config.overwrite)  # before the encoding
    dataset = SessionDataset.load(config.dataset)
    if dataset.titles is None:
        raise InputError(f"{config.dataset}: has no titles")
    titled = sum(bool(title.strip()) for title in dataset.titles)
    encoder = load_encoder(config.encoder, config.pooling)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("titles", total=titled)
        found = encode_catalogue(encoder, dataset.titles, lambda n: bar.advance(task, n))
    vectors = stored(found, config.embedding_dtype, encoder)
    provenance = encoder.identity | {"embedding_dtype": config.embedding_dtype}
    write_item_text(config.out, vectors, dataset, provenance, overwrite=config.overwrite)
    console.print(
        f"{dataset.name}: {titled:,} items, {encoder.encoded:,} distinct titles encoded; "
        f"{dataset.n_items - titled:,} items without a title have zeros",
        soft_wrap=True,
    )
    console.print(f"item text: {config.out}", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> None:
    cli.run(encode_items, EncodeItemsConfig, argv, prog="python -m llm_stage.encode_items")


if __name__ == "__main__":
    main()
