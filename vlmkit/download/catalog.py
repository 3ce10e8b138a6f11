"""What can be downloaded by name, with size, licence and digest where known; searches it and the Hub."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from vlmkit.datasets import DATASETS
from vlmkit.datasets.base import DataSet
from vlmkit.download.hub import HUB, asking, licence_of
from vlmkit.io.records import Record
from vlmkit.models.hub import ANSWER_WITHIN
from vlmkit.models.resolve import ALIASES


def entries() -> Iterator[Record]:
    """{name, kind, bytes, files, licence, url, sha256 or revision, what, used_by}; None stands for unknown."""
    for name in DATASETS:
        yield _data_set(DATASETS.load(name))
    for name, alias in ALIASES.items():
        known = {"bytes": alias.bytes, "files": None, "licence": None, "url": f"{HUB}/{alias.repo}", "revision": None}
        yield {"name": name, "kind": "model", **known, "what": alias.what, "used_by": list(alias.used_by)}


def _data_set(data: DataSet) -> Record:
    files = [{"url": f.url, "bytes": f.size, "sha256": _sha256(f.digest)} for f in data.files()]
    return {
        "name": data.name,
        "kind": "dataset",
        "bytes": _sum([file["bytes"] for file in files]),
        "files": files,
        "licence": data.licence,
        "terms": data.terms or None,
        "url": files[0]["url"] if len(files) == 1 else data.page,
        "sha256": files[0]["sha256"] if len(files) == 1 else None,
        "splits": list(data.splits),
        "what": data.what,
        "used_by": list(data.used_by),
    }


def _sha256(digest: str | None) -> str | None:
    kind, _, value = (digest or "").partition(":")
    return value if kind == "sha256" else None


def _sum(sizes: list[Any]) -> int | None:
    return None if None in sizes else sum(sizes)


@dataclass(frozen=True, slots=True)
class Query:
    """A search of the Hub; None matches anything. `smallest` and `largest` count parameters as the Hub does."""

    words: str
    task: str | None = None
    library: str | None = None
    licence: str | None = None
    downloads: int = 0
    smallest: str | None = None
    largest: str | None = None
    sort: str = "downloads"
    limit: int = 20

    def only_on_hub(self) -> list[str]:
        """The given flags that only a search of the Hub can use."""
        flags = {"--task": self.task, "--library": self.library, "--min-downloads": self.downloads}
        flags |= {"--min-size": self.smallest, "--max-size": self.largest}
        return [flag for flag, value in flags.items() if value]


def search_list(query: Query) -> list[Record]:
    """The entries of the list with all the words and the licence, ignoring case; other criteria need the Hub."""
    words, licence = query.words.lower().split(), (query.licence or "").lower()
    found = (
        entry
        for entry in entries()
        if all(word in str(list(entry.values())).lower() for word in words)
        and licence in (entry["licence"] or "").lower()
    )
    return list(islice(found, query.limit))


def search_hub(query: Query) -> list[Record]:
    """Models of the Hub. Raises Unreachable."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import get_session

    tags = [tag for tag in (query.licence and f"license:{query.licence}", query.library) if tag]
    bounds = [f"{name}:{size}" for name, size in (("min", query.smallest), ("max", query.largest)) if size]
    found: list[Record] = []
    with asking(query.words):
        # Without a network listing tries for half a minute; this request fails at once.
        get_session().get(f"{HfApi().endpoint}/api/models", params={"limit": 1}, timeout=ANSWER_WITHIN)
        listed = HfApi().list_models(
            search=query.words,
            filter=tags or None,
            pipeline_tag=query.task,
            num_parameters=",".join(bounds) or None,
            sort=query.sort,  # type: ignore[arg-type]
            expand=["downloads", "likes", "library_name", "pipeline_tag", "tags", "safetensors", "sha"],
        )
        for info in listed:
            if (info.downloads or 0) >= query.downloads:
                found.append(_hub_entry(info))
            elif query.sort == "downloads":
                break
            if len(found) == query.limit:
                break
    return found


def _hub_entry(info: Any) -> Record:
    weights = getattr(info, "safetensors", None)
    return {
        "name": info.id,
        "kind": "model",
        "task": info.pipeline_tag,
        "library": info.library_name,
        "licence": licence_of(info),
        "parameters": weights.total if weights else None,
        "downloads": info.downloads,
        "likes": info.likes,
        "url": f"{HUB}/{info.id}",
        "revision": getattr(info, "sha", None),
    }


def model_card(name: str, info: Any) -> Record:
    """The main facts of a model from its entry on the Hub."""
    card = info.card_data.to_dict() if info.card_data else {}
    sizes = [file.size for file in info.siblings or []]
    return {
        **_hub_entry(info),
        "alias": name if name in ALIASES else None,
        "bytes": _sum(sizes),
        "files": len(sizes),
        "gated": info.gated,
        "modified": info.last_modified.isoformat() if info.last_modified else None,
        **{key: card.get(key) for key in ("base_model", "datasets", "language")},
    }
