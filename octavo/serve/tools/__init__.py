"""Tool calls: what the model is told, the grammar that can force a call, and finding calls in what it writes.

    tools + tool_choice -> Tooling -> messages for the template, a grammar or none, a Reader per choice
"""

from __future__ import annotations

from .reader import CallArguments, CallStart, Content, Event, Reader
from .syntax import SYNTAXES, Syntax, conversation, forced, syntax_of

__all__ = ["SYNTAXES", "CallArguments", "CallStart", "Content", "Event", "Reader", "Syntax", "conversation", "forced", "syntax_of"]
