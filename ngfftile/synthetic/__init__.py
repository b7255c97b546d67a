"""Synthetic slides that look like tissue stained with haematoxylin and eosin.

For tests, examples and benchmarks: no patient, no licence, any size, and the same bytes from the same arguments.
Every pixel is a function of the seed, the slide's size and the place, so tiles are seamless whatever their size and
order.
"""

from ngfftile.synthetic.field import TissueField
from ngfftile.synthetic.svs import write_svs

__all__ = ["TissueField", "write_svs"]
