"""Which score shows that an index holds nothing like the query: the cosine, or one against a reference distribution.

    python tests/benchmarks/relative.py SHARED

Asks for things that are in a set of pictures and for things that are not (by captions; for `photos`, by looking), each
as "x", "a x" and "a photo of a x", and takes the best hit's score. AUC: how often a thing that is there scores above
one that is not. Last, what the threshold that lets one absent thing in ten through keeps of the present ones.
"""

import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from vlmkit.io.blobs import read_blobs
from vlmkit.io.records import decode_embedding
from vlmkit.models.load import load_embedder
from vlmkit.search.reference import NOISE, chance, match_of, text_vectors, z_score

VLMKIT = str(Path(sys.executable).with_name("vlmkit"))
FORMS = ("{}", "a {}", "a photo of a {}")
HITS = 10
LANDSCAPES = """
canyon, desert rocks, spiral staircase, mist over a forest, light trails at night, fern, leaf against the
sunset, river bend in a canyon, green plant with water drops, rooster, walrus, wooden pier, turquoise lake,
autumn leaves, succulent plant, surface of mars, chinese lantern, giraffe, green leaves on white, satellite in
orbit, coast, sea cliffs, snowy mountains, dried flower, driftwood, sunset over a jetty, fence post by the sea,
purple mountains, starry sky, clouds over a mountain, rocks on a beach, lighthouse
"""
DOUBTFUL = "galaxy, cactus, castle, lake, sunset, beach, boat, satellite"  # among the landscapes
THINGS = """
dog, beach, snow, bicycle, football player, soccer, basketball, horse, swimming pool, skateboarder, surfer,
motorcycle, baby, guitar, bride, camel, tent, boat, water slide, trampoline, tennis, hockey, cat, bird, lake,
waterfall, sunset, fountain, snowboarder, skier, swing, tractor, crowd, market, ice cream, wheelchair, umbrella,
bus, frisbee, bench, jellyfish, giraffe, walrus, computer keyboard, circuit board, microscope, airplane cockpit,
aircraft carrier, submarine, satellite, galaxy, solar eclipse, volcano, penguin, zebra, kangaroo, octopus,
lobster, snail, spider web, mushroom, cactus, violin, grand piano, washing machine, refrigerator, toaster,
bathtub, toilet, stapler, spreadsheet, map, barcode, passport, crossword puzzle, sushi, pizza, hamburger,
wedding cake, pineapple, broccoli, wine bottle, espresso machine, oil rig, wind turbine, power plant, steam
locomotive, windmill, pyramid, castle, cathedral, mosque, igloo, tank, rifle, hot air balloon, helicopter, space
shuttle, screwdriver, hammer, syringe, stethoscope, dinosaur, lighthouse
"""


def listed(text: str) -> list[str]:
    return [" ".join(thing.split()) for thing in text.split(",")]


def captions_of(captions: str) -> tuple[list[str], list[str]]:
    """The things that the captions name, and those of which they hold no word."""

    def said(word: str) -> bool:
        return re.search(rf"\b{word}(s|es)?\b", captions) is not None

    return [t for t in listed(THINGS) if said(t)], [t for t in listed(THINGS) if not any(map(said, t.split()))]


def sets(shared: Path) -> dict[str, tuple[Path, list[str], list[str]]]:
    """Pictures, things among them, things that are not."""
    flickr, coco = shared / "data/flickr8k/dev-000.tar", shared / "data/coco/captions.jsonl"
    with tarfile.open(flickr) as tar:
        labels = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]
    said = " ".join(caption.lower() for label in labels for caption in label["captions"])
    written = coco.read_text().lower()
    landscapes = listed(LANDSCAPES)
    absent = [t for t in listed(THINGS) if t not in landscapes + listed(DOUBTFUL)]
    return {
        "photos": (shared / "data/photos", landscapes, absent),
        "coco": (coco, *captions_of(written)),
        "flickr8k dev": (flickr, *captions_of(said)),
    }


def scores(vectors: np.ndarray, query: np.ndarray, everyday: np.ndarray) -> dict[str, float]:
    """Each measure of the best of ten hits."""
    cosines = vectors @ query
    best = np.argsort(-cosines)[:HITS]
    return {
        "cosine": cosines.max(),
        "cosine, standardised over the index": (cosines.max() - cosines.mean()) / cosines.std(),
        "relative": max(z_score(cosines[i], vectors[i], everyday) for i in best),
    }


def auc(there: list[float], absent: list[float]) -> float:
    return float((np.array(there)[:, None] > np.array(absent)).mean())


def main() -> None:
    model = load_embedder("mini")
    everyday = text_vectors(model)
    pooled: dict[str, tuple[list[float], list[float]]] = {}
    for name, (pictures, there, absent) in sets(Path(sys.argv[1])).items():
        with tempfile.NamedTemporaryFile() as file:
            subprocess.run([VLMKIT, "embed", pictures, "--format", "safetensors"], stdout=file, check=True)
            file.seek(0)
            vectors = np.stack([decode_embedding(record["embedding"]) for record in read_blobs(file, name)])

        def asked(things: list[str], vectors: np.ndarray = vectors) -> list[dict[str, float]]:
            texts = [form.format(thing) for form in FORMS for thing in things]
            return [scores(vectors, query, everyday) for query in model.embed_texts(texts)]

        present, missing = asked(there), asked(absent)
        print(f"{name}: {len(vectors)} pictures, {len(there)} things that are there, {len(absent)} that are not")
        for measure in present[0]:
            here, gone = ([entry[measure] for entry in found] for found in (present, missing))
            print(f"    AUC {auc(here, gone):.3f}  {measure}")
            ours, theirs = pooled.setdefault(measure, ([], []))
            ours += here
            theirs += gone
        for kind, found in (("there", present), ("not there", missing)):
            best = [entry["relative"] for entry in found]
            words = [match_of(score, len(vectors)) for score in best]
            shares = [f"{words.count(word) / len(words):.0%} {word}" for word in ("strong", "good", "weak")]
            noted = np.mean([chance(score, len(vectors)) > NOISE for score in best])
            print(f"    the best match of what is {kind}: {', '.join(shares)}; no better than chance: {noted:.0%}")
    print("one threshold for all sets")
    for measure, (ours, theirs) in pooled.items():
        cut = float(np.quantile(theirs, 0.9))
        kept = float(np.mean(np.array(ours) >= cut))
        print(
            f"    AUC {auc(ours, theirs):.3f}, at {cut:.2f} 10% of the absent and {kept:.0%} of the present  {measure}"
        )


if __name__ == "__main__":
    main()
