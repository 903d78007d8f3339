"""Seconds of a matrix product by its shape.

A product is computed in tiles, each by one multiprocessor: a rest at the edge takes a whole tile
(tile quantisation), and a rest of tiles takes a whole wave (wave quantisation). Libraries choose
the size of tiles; the larger, the better a tile is at its best. Source: NVIDIA, Matrix
Multiplication Background User's Guide, sections 3.1 and 3.2. A multiprocessor holds one large tile
at a time, so that a tile's result is written while nothing is multiplied there.
"""

from typing import NamedTuple

import numpy as np

from planner.timing.constants import Rates
from planner.timing.shapes import Numbers, Seconds

ALIGNED = 8
"""Elements of 16 bits in the 16 bytes that matrix units want (section 2.1 there)."""


class Tile(NamedTuple):
    """A part of the result that one multiprocessor computes at a time."""

    rows: int
    columns: int
    efficiency: float
    """Of the rate of the largest tiles (read off figure 7 there)."""


TILES = (
    Tile(256, 128, 1.0),
    Tile(128, 256, 1.0),
    Tile(128, 128, 0.93),
    Tile(128, 64, 0.8),
    Tile(64, 64, 0.6),
)


def matmul_seconds(
    rows: Numbers,
    columns: Numbers,
    inner: Numbers,
    *,
    groups: Numbers = 1,
    rates: Rates,
) -> Seconds:
    """``groups`` products of (rows, inner) and (inner, columns), by the fastest tile for each.

    The larger of what multiplying and what reading takes, and then the writing.
    """
    m, n, k, g = (np.asarray(value, dtype=np.float64) for value in (rows, columns, inner, groups))
    tiled = [_tiled(m, n, g, rates.multiprocessors, tile) for tile in TILES]
    computing = 2 * k * np.min(tiled, axis=0) / _flops_per_second(n, k, rates)
    memory = rates.memory_bytes_per_second / rates.element_bytes
    return np.maximum(computing, g * (m + n) * k / memory) + g * m * n / memory


def _flops_per_second(n: Numbers, k: Numbers, rates: Rates) -> Seconds:
    """By whether rows of the matrices begin where the matrix units want them to."""
    aligned = (np.asarray(n) % ALIGNED == 0) & (np.asarray(k) % ALIGNED == 0)
    return np.where(aligned, rates.product_flops_per_second, rates.misaligned_flops_per_second)


def _tiled(m: Numbers, n: Numbers, g: Numbers, units: int, tile: Tile) -> Seconds:
    """Elements of the result that the time is worth: whole waves of whole tiles."""
    tiles = g * np.ceil(np.asarray(m) / tile.rows) * np.ceil(np.asarray(n) / tile.columns)
    return np.ceil(tiles / units) * units * tile.rows * tile.columns / tile.efficiency
