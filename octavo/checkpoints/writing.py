"""What a converter needs of the writing side, in one place: layouts, files in the making, and unquantized numbers."""

from __future__ import annotations

from ._digest import digest_of_file
from ._partial import Partial
from ._plain_writer import TYPES, PlainWriter
from ._safetensors_write import held, index_of, lay_out, nbytes
from ._synced import write_synced

__all__ = ["TYPES", "Partial", "PlainWriter", "digest_of_file", "held", "index_of", "lay_out", "nbytes", "write_synced"]
