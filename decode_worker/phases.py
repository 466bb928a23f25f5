"""How far a request is in the decode worker: the one word for it, from its arrival until it is over."""

from enum import Enum


class TaskPhase(Enum):
    """Phases in their order. Up to SEARCH a task enters each once, and the values are their names in traces.

    From then on its engine says which it is in: between two launches, in one, or over.
    """

    PREFILL = "wait for prefill"
    PAGES = "wait for pages"
    KV = "receive KV"
    ROWS = "wait for rows"
    SEARCH = "search"
    IN_FLIGHT = "in flight"  # a launch reads its KV and writes its rows, whatever becomes of the request
    OVER = "over"
