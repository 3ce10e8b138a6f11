"""What a step of a language stage costs, from sizes alone: operations, and the memory of a process. Both are rough."""

from dataclasses import dataclass

EFFICIENCY = 0.4  # the share of a device's speed that training reaches
LABELS = 2048  # whose logits are in memory at once
# Bytes that a layer keeps of a token for the backward pass, by the bytes of a number: so many for each channel, and for
# each inner channel of the MLP. Measured on Qwen2 with a mask; norms compute in float32.
KEPT = {2: (24, 8), 4: (40, 16)}
LOGIT = {2: 10, 4: 12}  # bytes of a logit, its float32 copy, and the gradient


@dataclass(frozen=True, slots=True)
class Sizes:
    """Parameters of a model by what becomes of them, and the form of its language model."""

    trained: int
    frozen_bytes: int
    language: int
    tower: int
    layers: int
    width: int
    inner: int  # of the MLP
    vocabulary: int

    @property
    def gathered(self) -> int:
        """Parameters that stand whole in memory beside shards: a layer's, and the table of embeddings with the head."""
        return 2 * self.vocabulary * self.width + self.language // self.layers


def flops(sizes: Sizes, tokens: float, patches: float) -> float:
    """Operations of forward and backward on `tokens`, and of the tower's forward on `patches` of pictures.

    Gradients of weights are computed where these are trained. Checkpointing adds a forward: 2 a parameter and token.
    """
    return tokens * (4 * sizes.language + 2 * sizes.trained) + 2 * patches * sizes.tower


def memory(
    sizes: Sizes,
    tokens: float,
    labels: int,
    number: int,
    *,
    masters: bool,
    shards: int = 1,
    checkpointing: bool = False,
) -> float:
    """Bytes of a process that has `tokens` and `labels` in the model at once, whose numbers have `number` bytes.

    Of what is trained weight, gradient and AdamW's two moments stand in float32. With `masters`, or in `shards`, a
    layer in use is a copy beside these; autocast copies all trained weights to 16 bits.
    """
    state: float = 16 * sizes.trained + sizes.frozen_bytes
    if masters or shards > 1:
        state = state / shards + number * sizes.gathered
    elif number == 2:
        state += 2 * sizes.trained
    channel, inner = KEPT[number]
    layer = tokens * (channel * sizes.width + inner * sizes.inner)
    kept = layer + sizes.layers * number * tokens * sizes.width if checkpointing else sizes.layers * layer
    return state + kept + LOGIT[number] * min(labels, LABELS) * sizes.vocabulary
