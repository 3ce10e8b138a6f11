"""COCO captions: one JSON document of pictures and annotations (Chen and others, 2015) as records."""

from collections.abc import Iterator

from vlmkit.records import Failed, Record


def is_coco(record: Record) -> bool:
    """Whether `record` is a whole COCO document and no record of one picture."""
    return all(isinstance(record.get(name), list) for name in ("images", "annotations"))


def coco_records(document: Record) -> Iterator[Record | Failed]:
    """{id, image, captions} for each picture of the document, in its order; one without captions has none."""
    captions: dict[object, list[object]] = {}
    for number, found in enumerate(document["annotations"]):
        if isinstance(found, dict) and "caption" in found:
            captions.setdefault(found.get("image_id"), []).append(found["caption"])
        else:
            yield Failed(f"annotations[{number}]", None, "no caption")
    for number, picture in enumerate(document["images"]):
        if isinstance(picture, dict) and isinstance(picture.get("file_name"), str):
            key = picture.get("id")
            yield {"id": str(key), "image": picture["file_name"], "captions": captions.pop(key, None)}
        else:
            yield Failed(f"images[{number}]", None, "no file_name")
    for key in captions:
        yield Failed(str(key), None, "captions of a picture that the document does not have")
