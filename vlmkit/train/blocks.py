"""The repeated blocks of a model: what is compiled, and sharded, one by one."""

from collections.abc import Iterator

from torch import nn


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules that stand in lists of their kind: the layers of transformers, in open_clip too."""
    for child in model.children():
        if isinstance(child, nn.ModuleList) and len({type(each) for each in child}) == 1:
            yield from child
        else:
            yield from blocks(child)


def compile_blocks(model: nn.Module) -> None:
    """Have each block compiled when it is first run. All blocks of one form share one compilation."""
    for block in blocks(model):
        block.compile()
