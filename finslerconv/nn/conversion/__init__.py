"""Whole models converted: ordinary convolutions made adaptive ones, with a report, and back."""

from finslerconv.nn._selection import Selection, select
from finslerconv.nn.conversion._checkpoint import LoadedCheckpoint, load_deformable_checkpoint
from finslerconv.nn.conversion._convert import Conversion, convert, convert_back
from finslerconv.nn.conversion._report import ConversionReport, Converted, Cost, LeftAlone
from finslerconv.nn.conversion._resnet import convert_resnet

__all__ = [
    "convert",
    "select",
    "convert_back",
    "convert_resnet",
    "load_deformable_checkpoint",
    "LoadedCheckpoint",
    "Conversion",
    "ConversionReport",
    "Converted",
    "LeftAlone",
    "Cost",
    "Selection",
]
