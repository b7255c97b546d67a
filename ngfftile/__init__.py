"""Whole-slide images as OME-Zarr: convert, open lazily, find tissue, index tiles.

>>> import ngfftile as nt
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
