"""How good `mini` is on real pictures: `python tests/benchmarks/mini_quality.py [SHARED]` prints one JSON object."""

import json
import sys
import time
from pathlib import Path

import numpy as np

from vlmkit.io.executor import ahead
from vlmkit.io.images import open_picture
from vlmkit.io.records import batched
from vlmkit.io.sources import open_source
from vlmkit.models.embedders.mini import SIZE, Mini
from vlmkit.models.resolve import MINI_FILES

# What a person would type, and the beginnings of the names of the photographs that show it.
QUERIES = {
    "a lighthouse": ["william bout"],
    "a giraffe": ["Paweł Czerwiński Giraffe"],
    "walruses on the beach": ["Jay Ruzesky"],
    "a rooster": ["Jairo Alzate"],
    "a chicken": ["Jairo Alzate"],
    "sunset over a pier": ["Sunset by the Pier"],
    "a jetty in a lake at dusk": ["Sunset by the Pier"],
    "snowy mountains": ["Ryan Schroeder", "Tomasz Smal", "ice mountains"],
    "sunset over mountains": ["Tomasz Smal", "Wild Night", "Horseshoe Bend", "Sunset by the Pier"],
    "a canyon with a river": ["Horseshoe Bend"],
    "red rock formation": ["Ashim DSilva", "Horseshoe Bend"],
    "desert": ["Ashim DSilva", "Horseshoe Bend", "Martian Terrain"],
    "fern leaves": ["Disco Sea Eye Ferns"],
    "yellow autumn leaves": ["Leaves", "Fabio Sussarellu"],
    "a green plant": ["Jade Droplet", "Paweł Czerwiński Leaves", "Disco Sea Eye Ferns", "Living Stones"],
    "a dried flower": ["Sam Henderson"],
    "a pile of branches": ["Suluh Kalba"],
    "a lake with clear water": ["Lake Tahoe"],
    "a wooden dock by the water": ["Jonas Nilsson Lee", "Sunset by the Pier"],
    "cliffs by the sea": ["Rob Bye", "The Coast"],
    "seashore": ["Rob Bye", "The Coast", "victor-svistunov", "Lake Tahoe", "william bout"],
    "ocean waves": ["Rob Bye", "Jonas Nilsson Lee", "victor-svistunov"],
    "rocks on the beach": ["victor-svistunov"],
    "wooden posts by the ocean": ["The Coast"],
    "a forest in fog": ["Carmine De Fazio"],
    "a city at night": ["Cheng Feng"],
    "the night sky with stars": ["Wild Night"],
    "a satellite in space": ["Photo by SpaceX"],
    "the surface of a planet": ["Martian Terrain", "Photo by SpaceX"],
    "modern architecture": ["Brown Architecture", "Urban Dream"],
}
# More, by somebody who saw the photographs alone.
QUERIES |= {
    "lighthouse by the sea": ["william bout lighthouse.jpg"],
    "foggy forest": ["Carmine De Fazio.jpg"],
    "mountain peak in clouds": ["ice mountains.jpg"],
    "wooden dock on the water": ["Sunset by the Pier.jpg", "Jonas Nilsson Lee.jpg"],
    "red rock canyon": ["Ashim DSilva.jpg", "Horseshoe Bend Sunset.jpg"],
    "small yellow flowers": ["Sam Henderson.jpg"],
    "walruses on a beach": ["Jay Ruzesky.jpg"],
    "light trails at night": ["Cheng Feng.jpg"],
    "green leaves": ["Disco Sea Eye Ferns.jpg", "Paweł Czerwiński Leaves.jpg", "Jade Droplet.jpg"],
    "fallen autumn leaves": ["Leaves.jpg"],
    "water drops on a plant": ["Jade Droplet.jpg"],
    "starry night sky": ["Wild Night.jpg"],
    "stones on a beach": ["victor-svistunov-233897-KB.jpg"],
    "waves on a beach": ["Rob Bye.jpg", "The Coast.jpg"],
    "clear turquoise water": ["Lake Tahoe Colors.jpg"],
    "leaf silhouette at sunset": ["Fabio Sussarellu.jpg"],
    "pile of branches": ["Suluh Kalba.jpeg"],
    "satellite above earth": ["Photo by SpaceX.jpg"],
}


def embed_files(model: Mini, paths: list[Path]) -> np.ndarray:
    """(N, D) vectors of picture files."""
    opened = ahead(
        paths, lambda path: model.preprocess(open_picture(open_source(str(path)), SIZE)[0]), workers=2, depth=64
    )
    return np.concatenate([model.embed_images(np.stack(some)) for some in batched(opened, 32)])


def query_hits(model: Mini, folder: Path, top: int = 3) -> tuple[list[str], list[str]]:
    """(queries that find a right photograph among their first `top`, the others)."""
    photos = sorted(path for path in folder.iterdir() if path.suffix != ".tsv")
    pictures = embed_files(model, photos)
    best = (model.embed_texts(list(QUERIES)) @ pictures.T).argsort(1)[:, ::-1][:, :top]
    hit = {
        query: any(photos[i].name.startswith(start) for i in row for start in starts)
        for (query, starts), row in zip(QUERIES.items(), best, strict=True)
    }
    return [query for query in hit if hit[query]], [query for query in hit if not hit[query]]


def flickr_recall(model: Mini, shard: Path) -> dict[str, float]:
    """Recall both ways on a Flickr8k shard, fractions."""
    import torch

    from vlmkit.recipes.mini.train_embedder import vectors
    from vlmkit.train.contrastive.model import retrieval
    from vlmkit.train.contrastive.sampler import read_samples

    return retrieval(*map(torch.from_numpy, vectors(model, read_samples([str(shard)]))))


def main() -> None:
    shared = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[3] / "shared")
    started = time.perf_counter()
    model = Mini()
    model.embed_texts(["a dog"])
    cold = time.perf_counter() - started
    hits, missed = query_hits(model, shared / "data/photos")
    pictures = np.zeros((256, SIZE, SIZE, 3), np.uint8)
    model.embed_images(pictures[:16])
    started = time.perf_counter()
    model.embed_images(pictures)
    speed = len(pictures) / (time.perf_counter() - started)
    found = flickr_recall(model, shared / "data/flickr8k/dev-000.tar")
    size = sum((model.folder / name).stat().st_size for name in MINI_FILES["embed"])
    figures = {"bytes": size, "first_text_s": round(cold, 3), "pictures_per_s": round(speed)}
    print(json.dumps(figures | {"query_hits": len(hits), "missed": missed} | found))


if __name__ == "__main__":
    main()
