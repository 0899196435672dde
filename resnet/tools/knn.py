"""How well features tell classes apart: the nearest neighbours of each image vote for its class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recipes.text import plural
from resnet.data.sources.registry import evenly

NEIGHBOURS, TEMPERATURE = 20, 0.07
MOST_QUERIES = 10_000
_BLOCK = 1024


class Knn(NamedTuple):
    """The share of images whose neighbours are of their class."""

    top1: float
    """Percent, 0-100."""
    queries: int
    """Images that were asked about: all labelled ones, or that many at even distances."""
    images: int
    """Labelled images, among which neighbours were looked for."""


@torch.no_grad()
def knn(file: Path, neighbours: int = NEIGHBOURS) -> Knn:
    """Leave-one-out top-1 of the weighted k-nearest-neighbour vote over a table of `resnet features`.

    Each neighbour votes with exp(cosine similarity / 0.07), as in Wu et al. 2018 (arXiv:1805.01978, section 3.4), with
    the k=20 that Caron et al. 2021 (arXiv:2104.14294) found best. The file is read once, a row group at a time; memory
    is that of the queries. Raises ValueError where fewer than two images are labelled.
    """
    labels = _labels(file)
    labelled = np.flatnonzero(labels >= 0)
    check_labels(len(labelled))
    count = min(len(labelled), MOST_QUERIES)
    queries = torch.from_numpy(labelled[evenly(len(labelled), count)])
    asked = torch.cat([block[torch.isin(rows, queries)] for rows, block in _blocks(file)])
    best = torch.full((count, 0), 0.0)
    found = torch.full((count, 0), -1)
    codes = torch.from_numpy(labels)
    for rows, block in _blocks(file):
        similar = asked @ block.T
        similar.masked_fill_((rows == queries[:, None]) | (codes[rows] < 0), -torch.inf)
        both, numbers = torch.cat((best, similar), 1), torch.cat((found, codes[rows].expand(count, -1)), 1)
        best, at = both.topk(min(neighbours, both.shape[1]), 1)
        found = numbers.gather(1, at)
    votes = torch.zeros(count, int(codes.max()) + 1)
    votes.scatter_add_(1, found.clamp(min=0), (best / TEMPERATURE).exp())
    right = (votes.argmax(1) == codes[queries]).sum().item()
    return Knn(100 * right / count, count, len(labelled))


def check_labels(labelled: int) -> None:
    """Raise ValueError where so few images have labels that no neighbour of theirs has one."""
    if labelled < 2:
        raise ValueError(f"--knn: {plural(labelled, 'image')} with a label, and nearest neighbours need two or more")


def _labels(file: Path) -> np.ndarray:
    """A number for the label of each row, -1 for none."""
    column = pq.read_table(file, columns=["label"])["label"].combine_chunks()
    encoded = (column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column).dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _blocks(file: Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Numbers of some rows (n,) and their features (n, size) of length 1."""
    start = 0
    for batch in pq.ParquetFile(file).iter_batches(_BLOCK, columns=["feature"]):
        features = batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(len(batch), -1)
        block = torch.nn.functional.normalize(torch.from_numpy(features.copy()))
        yield torch.arange(start, start + len(batch)), block
        start += len(batch)
