"""``python -m llm_stage.encode_items``: titles as vectors, of the catalogue or of items that are not in it yet."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.progress import Progress

from dmsrec_jax import cli
from dmsrec_jax.artifacts import NewItems, write_item_text, write_new_items
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import check_replaceable
from llm_stage.config import EncodeItemsConfig
from llm_stage.encoder import encode_catalogue, load_encoder, stored
from llm_stage.new_items import read_new_items_csv


def encode_items(config: EncodeItemsConfig) -> None:
    """Writes the item text folder, or with --new-items the new items folder; items without a title get zeros."""
    console = Console(markup=False, highlight=False)
    marker = "item_text_embeddings.npy" if config.new_items is None else "new_item_ids.npy"
    reads = [config.dataset, *filter(None, [config.new_items])]
    check_replaceable(config.out, marker=marker, overwrite=config.overwrite, reads=reads)  # before the encoding
    dataset = SessionDataset.load(config.dataset, verify=True)
    if config.new_items is not None:
        ids, titles = read_new_items_csv(config.new_items, dataset)
    elif dataset.titles is None:
        raise InputError(f"{config.dataset}: has no titles")
    else:
        ids, titles = [], dataset.titles
    titled = sum(bool(title.strip()) for title in titles)
    encoder = load_encoder(config.encoder, config.pooling)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("titles", total=titled)
        found = encode_catalogue(encoder, titles, lambda n: bar.advance(task, n))
    vectors = stored(found, config.embedding_dtype, encoder)
    provenance = encoder.identity | {"embedding_dtype": config.embedding_dtype}
    if config.new_items is not None:
        items = NewItems(np.array(ids), np.array(titles), vectors, provenance)
        write_new_items(config.out, items, dataset, overwrite=config.overwrite)
        console.print(f"new items: {len(ids):,}, for recommend --new-items {config.out}", soft_wrap=True)
        return
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
