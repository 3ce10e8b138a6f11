"""How quick captions and answers are, whole processes, with the default chat model or the one named:

    python tests/benchmarks/talk.py FLICKR.tar [MODEL]

Captions of 400 pictures, and a cold question about one; interleaved, three and seven rounds.
"""

import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from itertools import islice
from pathlib import Path

VLMKIT = str(Path(sys.executable).with_name("vlmkit"))
PICTURES = 400


def seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([VLMKIT, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def memory() -> float:
    """The largest process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    model = ["-m", sys.argv[2]] if len(sys.argv) > 2 else []
    with tempfile.TemporaryDirectory() as name, tarfile.open(sys.argv[1]) as shard:
        members = (member for member in shard if member.name.endswith(".jpg"))
        for member in islice(members, PICTURES):
            shard.extract(member, name, filter="data")
        first = str(min(Path(name).iterdir()))
        asked = [seconds("ask", *model, first, "what is this?") for _ in range(7)]
        print(f"cold ask: {statistics.median(asked):.2f} s, median of 7, {memory():.0f} MB")
        captioned = [seconds("caption", *model, name) for _ in range(3)]
        rates = ", ".join(f"{PICTURES / took:.1f}" for took in captioned)
        print(f"captions a second over {PICTURES} pictures: {rates}; {memory():.0f} MB")


if __name__ == "__main__":
    main()
