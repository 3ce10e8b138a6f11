"""Batch sizes: how many pictures or texts a model processes at once."""

CPU = 16  # larger is no faster on a CPU, and takes memory
CUDA_FIRST, CUDA_LARGEST = 32, 512
WORTH = 1.05  # a batch twice as large stays where it is this much quicker


class BatchSize:
    """A batch size, fixed or automatic: doubled while that is faster and memory suffices."""

    def __init__(self, size: int = CPU, largest: int = 0) -> None:
        self.size = size
        self.largest = max(size, largest)
        self._best = 0.0  # items a second
        self._warm = False

    def learn(self, count: int, seconds: float) -> None:
        """A batch of `count` took `seconds`. The first one, in which the device warms up, does not count."""
        if count < self.size or self.size >= self.largest:
            return
        if not self._warm:
            self._warm = True
            return
        rate = count / seconds
        if rate > WORTH * self._best:
            self._best = rate
            self.size = min(2 * self.size, self.largest)
        else:
            self.size = self.largest = max(1, self.size // 2)

    def too_large(self, count: int) -> None:
        """`count` at once do not fit into memory."""
        self.size = self.largest = max(1, min(self.size, count // 2))
