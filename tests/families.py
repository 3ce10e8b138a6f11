"""Small models of families without a chat template, of random weights, as their own libraries save them."""

import json
from pathlib import Path
from typing import Any

import torch
from tiny_llava import SAID
from tokenizers import AddedToken, ByteLevelBPETokenizer
from transformers import (
    BartConfig,
    BartTokenizerFast,
    BertTokenizerFast,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GemmaConfig,
    GPT2TokenizerFast,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    OPTConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessor,
    T5Config,
)

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = TOWER | {"image_size": 48, "patch_size": 16, "initializer_range": 0.2}
QUERIES = 4
# Of the checkpoints that the maintainers of transformers converted, the banned words shortened.
FORMS = {form: {} for form in ("pure_text", "ocr", "description_with_bboxes", "polygons", "bboxes")}
FORMS |= {"description_with_bboxes_or_polygons": {}, "phrase_grounding": {"banned_grounding_tokens": ["it"]}}


def images() -> BlipImageProcessor:
    return BlipImageProcessor(size={"height": 48, "width": 48})


def word_pieces() -> BertTokenizerFast:
    """Words of SAID, and letters for all others."""
    words = sorted({word.strip("?,'s") for word in SAID.lower().split()} - {""})
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789?,.:'")
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizerFast(vocab={word: i for i, word in enumerate(dict.fromkeys(known))})


def byte_pairs(kind: Any, marks: list[str], **settings: Any) -> Any:
    """A tokenizer of `kind` on pairs of bytes; `marks` come first."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(SAID.splitlines() * 3, vocab_size=300 + len(marks), special_tokens=marks)
    made = json.loads(trained.to_str())["model"]
    return kind(vocab=made["vocab"], merges=[tuple(pair) for pair in made["merges"]], **settings)


def saved(model: Any, processor: Any, folder: Path, but: str = "nothing") -> Path:
    """Written with weights, `but` some, so large that pictures and words make a difference."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and but not in name:
                parameter.mul_(8)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def blip(folder: Path, kind: Any = BlipForConditionalGeneration) -> Path:
    """A BLIP of the class `kind`, on 16 tokens."""
    torch.manual_seed(0)
    words = word_pieces()
    text = TOWER | {"vocab_size": len(words) + 2, "bos_token_id": len(words), "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(text_config=text | {"max_position_embeddings": 32}, vision_config=VISION)
    return saved(kind(config), BlipProcessor(images(), words), folder)


def opt() -> tuple[Any, OPTConfig]:
    """A decoder, with its tokenizer."""
    marks = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    tokenizer = byte_pairs(GPT2TokenizerFast, ["<pad>", "</s>"], add_bos_token=True, **marks)
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = OPTConfig(vocab_size=320, word_embed_proj_dim=32, max_position_embeddings=64, **sizes, **ids)
    return tokenizer, config


def t5() -> tuple[Any, T5Config]:
    """An encoder and a decoder, with a tokenizer that ends what it reads."""
    tokenizer = byte_pairs(BartTokenizerFast, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return tokenizer, T5Config(vocab_size=320, initializer_factor=0.7, **sizes, **ids)


def blip2(folder: Path, language: Any, seed: int = 0) -> Path:
    """A BLIP-2 on the tokenizer and the configuration `language`."""
    torch.manual_seed(seed)
    tokenizer, text = language
    processor = Blip2Processor(images(), tokenizer, num_query_tokens=QUERIES)
    config = Blip2Config(text_config=text, **q_former(tokenizer))
    return saved(Blip2ForConditionalGeneration(config), processor, folder)


def instructblip(folder: Path, language: Any, seed: int = 0) -> Path:
    """An InstructBLIP on the tokenizer and the configuration `language`."""
    torch.manual_seed(seed)
    tokenizer, text = language
    words = word_pieces()
    processor = InstructBlipProcessor(images(), tokenizer, words, num_query_tokens=QUERIES)
    config = InstructBlipConfig(text_config=text, **q_former(tokenizer, vocab_size=len(words)))
    return saved(InstructBlipForConditionalGeneration(config), processor, folder)


def q_former(tokenizer: Any, **settings: Any) -> dict[str, Any]:
    """The configuration beside that of the language model; the processor has added its mark of a picture."""
    sizes = TOWER | {"cross_attention_frequency": 1, "max_position_embeddings": 40, **settings}
    mark = tokenizer.convert_tokens_to_ids("<image>")
    return {"vision_config": VISION, "qformer_config": sizes, "num_query_tokens": QUERIES, "image_token_index": mark}


def florence(folder: Path) -> Path:
    """A Florence-2 whose pictures are five tokens."""
    torch.manual_seed(0)
    known, named = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], {"image_token": "<image>"}
    tokenizer = byte_pairs(BartTokenizerFast, known, extra_special_tokens=named)
    marks = [f"<loc_{i}>" for i in range(1000)] + ["<od>", "</od>", "<sep>", "<poly>", "</poly>"]
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    scaled = CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    scaled.image_seq_length = 5
    processor = Florence2Processor(scaled, tokenizer, post_processor_config=FORMS)
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes |= {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 96}
    stages = {name: [2, 2, 2, 2] for name in ("num_heads", "num_groups")} | {"embed_dim": [8, 16, 16, 32]}
    config = Florence2Config(
        text_config=BartConfig(vocab_size=len(tokenizer), forced_bos_token_id=0, **sizes).to_dict(),
        vision_config={"depths": [1, 1, 1, 1], "window_size": 2, "projection_dim": 32, **stages},
        image_token_id=tokenizer.image_token_id,
    )
    model = Florence2ForConditionalGeneration(config)
    model.generation_config.no_repeat_ngram_size = 3  # as in the checkpoints
    return saved(model, processor, folder)


def paligemma(folder: Path) -> Path:
    """A PaliGemma whose pictures are nine tokens."""
    torch.manual_seed(0)
    marks = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    tokenizer = byte_pairs(GPT2TokenizerFast, ["<pad>", "<eos>", "<bos>", "<unk>"], **marks)
    shown = SiglipImageProcessor(size={"height": 48, "width": 48})
    shown.image_seq_length = 9
    processor = PaliGemmaProcessor(shown, tokenizer)
    sizes = TOWER | {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128}
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    config = PaliGemmaConfig(
        text_config=GemmaConfig(vocab_size=len(processor.tokenizer), **sizes, **ids),
        vision_config=TOWER | {"image_size": 48, "patch_size": 16},
        image_token_index=processor.image_token_id,
        projection_dim=32,
    )
    return saved(PaliGemmaForConditionalGeneration(config), processor, folder, but="embed_tokens")
