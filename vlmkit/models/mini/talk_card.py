"""The card of what `mini` talks with, in the words of what was measured."""

from collections.abc import Sequence
from typing import Any

CARD = """# What mini talks with

The language side of `mini`: it answers short questions about a picture and describes it in a sentence, in English, by
ONNX Runtime on a CPU. For trying the tools, for tests and for demonstrations off line; not for work that matters. Made
by `python -m vlmkit.models.mini.talk_recipe`; this card is written by the same command.

## How it was made

1. A picture is the 7 x 7 places of mini's own image tower (EfficientNet-Lite0, locked), 1,280 numbers each; a two-layer
   projector makes words of them, which stand before the question. The language model is a Llama of {layers} layers,
   width {width}, with {pieces:,} pieces of words, from nothing.
2. `vlmkit train instruct --vision mini`, both stages in one: the captions of Flickr8k, and beside them questions made
   from these captions by rule, easy-VQA and DAQUAR, {batch_size} pictures a step, each with all that is said about it,
   in one of several views: whole, mirrored (where captions name no left and right), cropped at random.
   AdamW, dropout {dropout:g}, label smoothing {smoothing:g}, seed {seed}. In turn, each from the checkpoint with the
   least loss on captions held out:
{phases}
3. `vlmkit train prefer` (DPO) on pairs of its own captions of the training pictures: of nine the one closest to what
   people wrote, by CIDEr-D, and the farthest. Rate {preferring[lr]:g}, beta {preferring[beta]:g}, once through; and
   then {preferred:.0%} of the weights after it and the rest of those before.
4. `vlmkit train instruct` again, on more questions about DAQUAR's pictures and crops of them than people asked, with
   what kernel ridge regression answers that was fitted to DAQUAR's questions about other pictures; with captions of its
   own, and some of what it learned before. Half of the new questions end with a question mark, which DAQUAR's lack.
   The average of the weights before this and of these, which began there, each trained with a seed of its own and
   without smoothing:
{taught}
5. For a caption the places of the picture and of its mirror image are averaged, and of eight that beam search finds the
   one is taken that is also close to the picture for the encoders of mini. Weights are kept in 8 bits and computed with
   in float32.

## Measured

With the packed model, on what was held out. Shuffled: each question with the picture of another question, so the
difference is what it sees; the rest it guesses from the words.

| | |
|---|---|
| captions of {captions:,} pictures of Flickr8k, the best of 8 beams: CIDEr, BLEU-4 | {cider:.3f}, {bleu4:.3f} |
| easy-VQA, {easy_vqa_questions:,} test questions, exact; shuffled | {easy_vqa_exact:.1%}; {easy_vqa_shuffled:.1%} |
| DAQUAR, {daquar_questions:,} questions about rooms, exact; shuffled | {daquar_exact:.1%}; {daquar_shuffled:.1%} |

## Data and licences

| part | from | licence |
|---|---|---|
| captions, and questions made from them | Flickr8k (Hodosh and others, 2013) | research, non-commercial |
| questions about rooms | DAQUAR (Malinowski and Fritz, 2014), on pictures of NYU Depth V2 | research |
| questions about shapes | easy-VQA (Zhou, 2019), PyPI `easy-vqa` | MIT |

Treat what was learned from the captions as their pictures: for research, not commercially. No picture is in the files.

## What it is not good at

- It has seen people and dogs out of doors, rooms, and drawings of shapes. Elsewhere it says something likely and wrong,
  in a sure voice: every answer is a guess.
- Counting beyond three, left and right, text in pictures, who does what to whom, why.
- Conversations, instructions, languages other than English, anything that is no question about a picture.
- It has the leanings of its data: people are described as American annotators described them in 2013. Do not use it to
  judge people.
"""


def card(figures: dict[str, Any], recipe: dict[str, Any], model: dict[str, int]) -> str:
    """`figures` by talk_measure, the settings of the recipe, and `layers`, `width`, `pieces` of the language model."""
    told = {"phases": "\n".join(map(_phase, recipe["phases"]))}
    told["taught"] = "\n".join(_pupil(teaching, recipe["lessons"]) for teaching in recipe["teaching"])
    return CARD.format_map(figures | recipe | model | told)


def _pupil(teaching: dict[str, Any], lessons: Sequence[dict[str, int]]) -> str:
    which = teaching["lessons"]
    drawn = "{each} questions about a picture, {crops} crops of it".format_map(lessons[which])
    return f"{_phase(teaching)} Dropout {teaching['dropout']:g}; draw {which + 1} of questions: {drawn}."


def _phase(phase: dict[str, Any]) -> str:
    weights = ", ".join(f"{name} {weight:g}" for name, weight in phase["mixture"].items())
    once = f"{phase['epochs']:g} times through, rate {phase['lr']:g}, {phase['views']} views"
    return f"   - {once}, by weight: {weights}."
