"""RapidOCR: PaddleOCR's PP-OCR (Cui et al. 2025) on ONNX Runtime, with the models of its package; none is fetched."""

import logging
import os
import threading
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmkit.errors import VlmkitError, first_line
from vlmkit.models.ocr.base import OcrModel, Rows
from vlmkit.models.ocr.lines import Line, in_reading_order
from vlmkit.models.resolve import Checkpoint
from vlmkit.models.types import Hardware, RequestError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

# Pixels to which a picture is reduced to find text in it; letters from 7 pixels on are found. The second number is for
# one whose lines are lower than LOW under the first. Each pixel takes some 250 bytes.
AREAS = (1_250_000, 3_000_000)
LOW = 15
SMALLEST = 32  # side in pixels; smaller pictures get a margin
AT_ONCE = 4  # pictures, for which memory is needed
TALL = 1.5  # height by width from which on text runs up or down
UNSURE = 0.9  # a line read with less is read upside down, too
MIN_SCORE = 0.6  # with less it is no text; the package has 0.5
SHORT = 2  # letters and digits up to which it has to be UNSURE at least: in photographs round things pass for an O
HEIGHT = 96  # pixels of a line; higher ones are reduced

_large = threading.Lock()  # memory is for one picture of the second area


class RapidOcr(OcrModel):
    """Finds lines, turns them upright and reads them. Its results do not depend on the number of threads."""

    def __init__(self, checkpoint: Checkpoint, hardware: Hardware) -> None:
        if hardware.device not in ("auto", "cpu"):
            raise VlmkitError(f"rapidocr runs on the CPU, not on {hardware.device}", "leave --device out")
        self._models = checkpoint.weights
        self._cores = hardware.threads or len(os.sched_getaffinity(0))
        self._turns = threading.BoundedSemaphore(min(AT_ONCE, self._cores))

    @cached_property
    def _shared(self) -> "_Networks":
        """For pictures that are read at the same time."""
        return _Networks(self._models, max(1, self._cores // AT_ONCE))

    @cached_property
    def _all_cores(self) -> "_Networks":
        return _Networks(self._models, self._cores)

    def read(self, image: "Image", *, alone: bool = False) -> Rows:
        import cv2
        import numpy as np

        with self._turns:
            networks = self._all_cores if alone else self._shared
            try:
                return in_reading_order(networks.lines(np.asarray(image)))
            except (cv2.error, MemoryError) as error:
                what = f"the text in it cannot be read ({first_line(error)})"
                raise RequestError(what, "make the picture smaller, or cut it into parts") from None


class _Networks:
    """The detector, the recogniser and the classifier of upside-down lines, with `threads` threads each."""

    def __init__(self, models: list[Path], threads: int) -> None:
        logging.getLogger("RapidOCR").disabled = True
        import cv2
        from omegaconf import OmegaConf
        from rapidocr.ch_ppocr_cls import TextClassifier
        from rapidocr.ch_ppocr_det import TextDetector
        from rapidocr.ch_ppocr_rec import TextRecognizer
        from rapidocr.main import DEFAULT_CFG_PATH
        from rapidocr.utils.parse_parameters import ParseParams

        cv2.setNumThreads(1)
        settings = ParseParams.load(DEFAULT_CFG_PATH)
        settings.Det.limit_side_len = SMALLEST  # up to its 736 pixels it scales pictures up: five times the work
        settings.Rec.rec_batch_num = 1  # lines of one batch change each other's text

        def part(name: str, model: Path) -> Any:
            made = OmegaConf.create(dict(settings[name]), flags={"allow_objects": True})
            made.font_path, made.session = None, _session(model, threads)
            return made

        detector, recognizer, classifier = models
        self._detector = TextDetector(part("Det", detector))
        self._recognizer = TextRecognizer(part("Rec", recognizer))
        self._classifier = TextClassifier(part("Cls", classifier))

    def lines(self, pixels: "np.ndarray") -> list[Line]:
        """What is written in (H, W, 3) RGB."""
        import numpy as np

        quads = self._found(pixels)
        if not quads:
            return []
        shapes = np.array([_shape(quad) for quad in quads])
        lengths = shapes.max(1)
        is_tall = shapes[:, 1] >= TALL * shapes[:, 0]
        if lengths[is_tall].sum() > lengths.sum() / 2:  # a page on its side, whose short words are, too
            is_tall = shapes[:, 1] * TALL >= shapes[:, 0]
        quads = [np.roll(quad, -1, 0) if tall else quad for quad, tall in zip(quads, is_tall, strict=True)]
        crops = [_crop(pixels, quad) for quad in quads]
        labels = self._classifier(crops).cls_res or ()
        upside_down = np.array([label == "180" for label, _ in labels])
        if lengths[upside_down].sum() > lengths.sum() / 2:  # the page is
            quads, crops = [np.roll(quad, 2, 0) for quad in quads], list(map(_half_turned, crops))
        read = self._texts(crops)
        unsure = [number for number, (_, score) in enumerate(read) if score < UNSURE]
        again = self._texts([_half_turned(crops[number]) for number in unsure])
        for number, (text, score) in zip(unsure, again, strict=True):
            if score > read[number][1]:
                read[number], quads[number] = (text, score), np.roll(quads[number], 2, 0)
        pairs = zip(read, quads, strict=True)
        return [Line(text, score, quad) for (text, score), quad in pairs if _is_text(text, score)]

    def _found(self, pixels: "np.ndarray") -> "list[np.ndarray]":
        """The corners (4 x 2 float32, clockwise from the upper left) of each line."""
        import cv2
        import numpy as np

        height, width = pixels.shape[:2]
        quads: list[np.ndarray] = []
        for area in AREAS:
            factor = min(1.0, (area / (width * height)) ** 0.5)
            size = (max(1, round(width * factor)), max(1, round(height * factor)))
            reduced = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if factor < 1 else pixels
            margins = (0, max(0, SMALLEST - size[1]), 0, max(0, SMALLEST - size[0]))
            reduced = cv2.copyMakeBorder(reduced[:, :, ::-1], *margins, cv2.BORDER_REPLICATE)
            with _large if area > AREAS[0] else nullcontext():
                boxes = self._detector(reduced).boxes
            quads = [] if boxes is None else list((boxes / factor).astype(np.float32))
            if factor == 1 or not quads or min(min(_shape(quad)) for quad in quads) * factor >= LOW:
                break
        return quads

    def _texts(self, crops: "list[np.ndarray]") -> list[tuple[str, float]]:
        """(text, mean probability of its characters) of each upright line."""
        from rapidocr.ch_ppocr_rec import TextRecInput

        if not crops:
            return []
        result = self._recognizer(TextRecInput(img=crops))
        return [(text.strip(), float(score)) for text, score in zip(result.txts or (), result.scores, strict=True)]


def _session(model: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # it would grow with each new size of picture
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other work has the cores between
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no common base
        raise VlmkitError(f"{model}: {first_line(error)}", "pip install --force-reinstall rapidocr") from None


def _is_text(text: str, score: float) -> bool:
    letters = sum(map(str.isalnum, text))
    return letters > 0 and score >= (UNSURE if letters <= SHORT else MIN_SCORE)


def _shape(quad: "np.ndarray") -> tuple[float, float]:
    """Width and height in pixels."""
    import numpy as np

    sides = np.linalg.norm(quad - np.roll(quad, -1, 0), axis=1)
    return max(sides[0], sides[2]), max(sides[1], sides[3])


def _crop(pixels: "np.ndarray", quad: "np.ndarray") -> "np.ndarray":
    """The line as an upright BGR picture, at most HEIGHT pixels high."""
    import cv2
    import numpy as np

    width, height = (max(1, int(side)) for side in _shape(quad))
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    matrix = cv2.getPerspectiveTransform(quad, corners)
    flags, border = cv2.INTER_CUBIC, cv2.BORDER_REPLICATE
    crop = cv2.warpPerspective(pixels, matrix, (width, height), flags=flags, borderMode=border)[:, :, ::-1]
    if height > HEIGHT:
        crop = cv2.resize(crop, (max(1, round(width * HEIGHT / height)), HEIGHT), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(crop)


def _half_turned(crop: "np.ndarray") -> "np.ndarray":
    import numpy as np

    return np.ascontiguousarray(crop[::-1, ::-1])
