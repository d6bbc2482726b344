"""Silence known noise of the toolchains, line by line, and nothing else.

The pinned packages complain at import about CUDA extensions and macOS libraries that this machine
neither has nor needs. Each pattern names one such line; every other message still comes through.
"""

from __future__ import annotations

import logging
import os
import re
import warnings

# (logger, pattern of the message)
NOISE_LOGGED = (
    ("torchao", r"Failed to load .*_C_\w+"),
    ("torch.utils._pytree", r"is an Enum subclass and is now natively supported"),
    ("coremltools", r"Failed to load _ML\w+Proxy"),
    ("coremltools", r"(scikit-learn|Torch) version \S+ (is not supported|has not been tested)"),
    ("diffusers.quantizers.torchao.torchao_quantizer", r"Unable to import `torchao`"),
)

# pattern of the message of a Python warning
NOISE_WARNED = (
    r".*isinstance\(treespec, LeafSpec\)",
    r".*erase_node\(.*\) on an already erased node",
)

NO_BARS = "HF_HUB_DISABLE_PROGRESS_BARS"  # of huggingface_hub and transformers, read at import


def hush() -> None:
    """Install the filters; to be called before the toolchains are imported."""
    os.environ.setdefault(NO_BARS, "1")
    for name in {name for name, _ in NOISE_LOGGED}:
        logging.getLogger(name).addFilter(is_news)
    for pattern in NOISE_WARNED:
        warnings.filterwarnings("ignore", message=pattern)
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(?!pocketfocus)")


def show_downloads() -> None:
    """Bring back the bars that `hush` took away, where something is fetched from the Hub."""
    os.environ.pop(NO_BARS, None)


def is_news(record: logging.LogRecord) -> bool:
    """Return False for a log record that is listed as noise."""
    message = record.getMessage()
    return not any(
        record.name == name and re.search(pattern, message) for name, pattern in NOISE_LOGGED
    )
