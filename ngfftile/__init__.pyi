from . import errors, filters, synthetic
from .geometry import Mpp, Region, Size
from .grid import TileGrid
from .index import Index
from .slide import Slide, open
from .sources import SourceInfo, open_source
from .tiler import tile
from .verify import Report, verify
from .view import Level, View
from .writer import Conversion, ConversionPlan, convert, plan

__all__ = [
    "Conversion",
    "ConversionPlan",
    "Index",
    "Level",
    "Mpp",
    "Region",
    "Report",
    "Size",
    "Slide",
    "SourceInfo",
    "TileGrid",
    "View",
    "convert",
    "errors",
    "filters",
    "open",
    "open_source",
    "plan",
    "synthetic",
    "tile",
    "verify",
]
