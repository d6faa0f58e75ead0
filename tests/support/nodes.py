"""Processes of one machine as those of several nodes, as far as a job can tell by its environment."""

import os

NODE_SIZES = {2: 1, 4: 2}
"""By the number of processes, how many a node has."""


def as_nodes(strategy: str) -> None:
    """Makes the processes of a launched job those of two nodes, where a strategy tells them apart; else of one."""
    if "WORLD_SIZE" not in os.environ:
        return
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    size = NODE_SIZES[ranks] if strategy == "hsdp" else ranks
    os.environ |= {"LOCAL_WORLD_SIZE": str(size), "LOCAL_RANK": str(rank % size), "GROUP_RANK": str(rank // size)}
