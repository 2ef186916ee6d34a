"""loffta: extract tokens from frozen vision backbones once, train many heads on them."""

__version__ = "0.1.0"
