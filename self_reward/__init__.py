"""Self-rewarding training of language models (Yuan et al. 2024, arXiv 2401.10020)."""

__version__ = "0.1.0"
