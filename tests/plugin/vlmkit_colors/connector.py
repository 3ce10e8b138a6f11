"""A connector of vision-language models."""

from torch import nn

from vlmkit.models.llava.connectors import Connector


class Average(Connector):
    """The mean of all image features as a single token."""

    tokens = 1

    def __init__(self, width, dim):
        super().__init__()
        self.linear = nn.Linear(width, dim)

    def forward(self, features):
        return self.linear(features.mean(1, keepdim=True))
