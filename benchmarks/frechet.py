"""FID: how far the images that a model made are, as a set, from the true ones (arXiv 1706.08500).

Features are Gaussian, says the measure: it compares their means and covariances. Of N images fewer
than features (2048) the covariance is of rank N - 1, and figures are comparable at the same N only.

Legend: N images, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pocketfocus.run.files import key_of, write_atomic

Extractor = Callable[[Tensor], Tensor]
"""Images [N,3,H,W] in [-1, 1] to features [N,D]."""

TRUE = ""  # in the place of a model's name


def frechet_distance(made: Tensor, true: Tensor) -> float | None:
    """Return the distance of Gaussians fitted to features [N,D] and [M,D]; None for fewer than two.

    The trace of the root of a product of covariances A'A and B'B is the sum of the singular values
    of AB', and A may be its triangular factor.
    """
    if min(len(made), len(true)) < 2:
        return None
    means, factors, traces = [], [], 0.0
    for values in (made.double(), true.double()):
        means.append(values.mean(0))
        centred = (values - means[-1]) / (len(values) - 1) ** 0.5
        factors.append(torch.linalg.qr(centred, mode="r").R)
        traces += float(centred.square().sum())
    shared = float(torch.linalg.svdvals(factors[0] @ factors[1].T).sum())
    apart = float((means[0] - means[1]).square().sum())
    return max(0.0, apart + traces - 2 * shared)


class Seen:
    """What a network sees of the images that models made and of the true ones, by call.

    Kept in a folder as well, where one is given, so that an interrupted evaluation can go on.
    """

    def __init__(self, extract: Extractor, folder: Path | None = None) -> None:
        self._extract, self._folder = extract, folder
        self._features: dict[tuple[int, str, int], Tensor] = {}

    def __contains__(self, call: tuple[int, str, int]) -> bool:
        return all(map(self._has, self._pair(call)))

    def add(self, call: tuple[int, str, int], made: Tensor, true: Tensor) -> None:
        """Keep what is seen of a call's images [N,3,H,W] and of the true ones, which are the same
        for every model: calls are scene, model and position."""
        for key, images in zip(self._pair(call), (made, true), strict=True):
            if not self._has(key):
                self._features[key] = self._extract(images)
                if self._folder is not None:
                    self._write(key)

    def distance(self, model: str) -> tuple[float | None, int]:
        """Return the distance of a model's images to the true ones, and how many there are."""
        pairs = [self._pair(key) for key in self._features if key[1] == model]
        if not pairs:
            return None, 0
        made, true = (
            torch.cat([self._features[key] for key in keys]) for keys in zip(*pairs, strict=True)
        )
        return frechet_distance(made, true), len(made)

    def _pair(self, call: tuple[int, str, int]) -> tuple[tuple[int, str, int], ...]:
        """Return the keys of a call's images and of the true ones."""
        scene, _, position = call
        return call, (scene, TRUE, position)

    def _path(self, key: tuple[int, str, int]) -> Path:
        return (self._folder or Path()) / f"{key_of(call=key)}.safetensors"

    def _write(self, key: tuple[int, str, int]) -> None:
        with write_atomic(self._path(key)) as scratch:
            save_file({"features": self._features[key].contiguous()}, scratch)

    def _has(self, key: tuple[int, str, int]) -> bool:
        """Return whether there is a call, which is taken from the folder where it is not here."""
        path = self._path(key)
        if self._folder is not None and key not in self._features and path.is_file():
            with suppress(SafetensorError, KeyError):  # else it is made anew
                self._features[key] = load_file(path)["features"]
        return key in self._features
