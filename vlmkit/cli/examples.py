"""Examples of every command: shown by --help and the man pages, executed by the tests.

They run in order in a folder with `photos/` (a coffee cup, a cat, a rocket and other photographs), `shard.tar`
(pictures with captions), `image-tower/`, `text-tower/`, `labels.txt`. In `prints`, what a line prints, `…` stands for
anything.
"""

from typing import NamedTuple


class Example(NamedTuple):
    """One shell line, what it is for, and what it prints."""

    what: str
    line: str
    prints: str = ""


EXAMPLES: dict[str, list[Example]] = {
    "embed": [
        Example("Index a folder of photos.", "vlmkit embed photos/ | vlmkit index"),
        Example(
            "Keep the vectors of a webdataset shard in a file.",
            "vlmkit embed shard.tar -o vectors.safetensors --format safetensors",
        ),
        Example(
            "Pictures from find, whatever their names.",
            "find photos -name '*.png' -print0 | vlmkit embed -0 | vlmkit index -i ./png.index",
        ),
        Example(
            "Embed a text.",
            "echo 'a cup of coffee' | vlmkit embed --text",
            '{"id":"a cup of coffee","text":"a cup of coffee","model":"mini@…","embedding":"…"}',
        ),
        Example(
            "Only what is new or changed since, for cron.", "vlmkit embed --changed default photos/ | vlmkit index"
        ),
        Example("Go on past broken files and list them.", "vlmkit embed photos/ --errors failed.jsonl -o photos.jsonl"),
    ],
    "index": [
        Example("Add records to the default index.", "vlmkit index photos.jsonl"),
        Example("An index in a folder of your choice.", "vlmkit index vectors.safetensors -i ./shard.index"),
        Example(
            "What is in it?",
            "vlmkit index --info",
            '{"path":"…/vlmkit/default","model":"mini@…","dim":…,"count":…,"type":"flat","bytes":…,"reason":"auto: …"}',
        ),
        Example("Is it sound?", "vlmkit index --verify"),
        Example("Forget what was deleted.", "vlmkit index --prune photos/ < /dev/null"),
        Example("Search an index of millions quickly.", "vlmkit index -i ./shard.index --type ivf < /dev/null"),
        Example("Add one index to another.", "vlmkit index -i ./all.index --merge ./shard.index --merge default"),
        Example("Copy an index.", "vlmkit index --dump | vlmkit index -i ./copy.index"),
        Example("Drop one record.", "vlmkit index -i ./copy.index --remove $PWD/photos/coffee.png"),
    ],
    "search": [
        Example("Find a photo by what is on it.", 'vlmkit search "a cup of coffee" -k 1 -l', "…/photos/coffee.png"),
        Example("Find photos like another one.", "vlmkit search --image photos/chelsea.png -k 3"),
        Example(
            "Copy the five best into a folder.",
            'mkdir -p best && vlmkit search "a rocket" -k 5 -0 | xargs -0 cp -t best',
        ),
        Example("Scores for a script.", 'vlmkit search "a cat" -k 1 --json', '{…"query":"a cat","rank":1,"score":…}'),
        Example(
            "More of this, less of that: parts add up, a number and a colon are a weight.",
            'vlmkit search "2:an animal" --image photos/flower.jpg --minus "0.5:a horse"',
        ),
        Example("Only among wide pictures.", "vlmkit search 'the sky' --where 'width>=512' --where 'image~*.jpg'"),
        Example(
            "Is there anything like it? If not, the exit code is 1.",
            'vlmkit search "a cat" --relative --min-score 3.3 -k 1',
            '{…"relative":…}',
        ),
        Example("Many queries at once.", "printf 'a cat\\na rocket\\n' | vlmkit search --queries - -k 1"),
        Example("A page to look at.", "vlmkit search 'a cup of coffee' --html coffee.html > coffee.jsonl"),
        Example(
            "Copies and near copies; here every group whose pictures are at least this close.",
            "vlmkit search --duplicates --threshold 0.3 -k 5",
        ),
    ],
    "classify": [
        Example(
            "Which of three is it?",
            "vlmkit classify photos/chelsea.png --labels cat,dog,rocket -k 1",
            '{…"label":"cat","labels":[{"label":"cat","score":…}]}',
        ),
        Example(
            "Labels from a file, your own sentence.",
            "vlmkit classify photos/ --labels-file labels.txt --template 'a picture of a {}.'",
        ),
        Example("Classify what is embedded already.", "vlmkit classify photos.jsonl --labels indoors,outdoors -k 1"),
    ],
    "caption": [
        Example("Alt text for one picture.", "vlmkit caption photos/coffee.png", "…."),
        Example(
            "A folder: one record each, and what was done already is not done again.",
            "vlmkit caption photos/ --resume captioned.jsonl",
        ),
        Example(
            "Begin as you like.", 'vlmkit caption photos/chelsea.png --prompt "This image shows"', "This image shows…."
        ),
        Example(
            "A table of names and short captions.",
            "vlmkit caption photos/ --length short | jq -r '.image + \"\\t\" + .caption'",
            "…/photos/astronaut.png\t…",
        ),
        Example("What a page sends.", "cat photos/rocket.jpg | vlmkit caption"),
    ],
    "ask": [
        Example("One question, one line.", "vlmkit ask photos/coffee.png 'what color is the cup?'"),
        Example(
            "Two pictures in one question.", "vlmkit ask photos/coffee.png photos/chelsea.png 'what is different?'"
        ),
        Example(
            "The same question about a folder.",
            "vlmkit ask photos/ 'is there a person?'",
            '{"id":"…/photos/astronaut.png",…"question":"is there a person?","answer":"…","answer_model":"…@…"}\n…',
        ),
        Example("About what a search finds.", "vlmkit search 'a cat' -k 3 | vlmkit ask 'what color is it?'"),
        Example("Questions in records, scored.", "vlmkit ask answers.jsonl | vlmkit eval vqa --metric exact"),
        Example(
            "Ask a hosted model, here at $OPENAI_BASE_URL or OpenAI's own place.",
            "vlmkit ask photos/coffee.png 'what is this?' -m openai:gpt-4o-mini --option detail=low",
        ),
    ],
    "train": [
        Example(
            "Train a CLIP on captioned pictures, an eighth of them held out.",
            "vlmkit train contrastive shard.tar --vision image-tower/ --text text-tower/ --val 0.125 -o clip",
            '{"epoch":0,"step":0,…',
        ),
        Example(
            "What would it take to train the towers of that model too, in parts that fit into memory?",
            "vlmkit train contrastive shard.tar --from clip/ --accumulate 4 --dry-run -o whole-clip",
            '{"stage":"contrastive","trainable_parameters":…,"memory_gb":…,"seconds":…}',
        ),
        Example(
            "Go on from it, the pictures' side as it is, and from where it stood if it was killed.",
            "vlmkit train contrastive shard.tar --from clip/ --lock image --epochs 2 -o tuned --resume",
            '{"epoch":1,"step":1,…',
        ),
        Example("Use it.", "vlmkit embed photos/coffee.png -m clip/", '{…"model":"…/clip@…'),
        Example(
            "Use it with half the memory.",
            "vlmkit embed photos/coffee.png -m clip/ --precision bf16",
            '{…"model":"…/clip@…',
        ),
        Example(
            "Teach a language model to see, first the projector alone; debug is tiny and needs no download.",
            "vlmkit train align shard.tar --preset debug --steps 2 -o aligned",
            '{"step":1,"loss":…',
        ),
        Example(
            "Then let it answer questions, with adapters in the language model.",
            "vlmkit train instruct answers.jsonl --preset debug --steps 2 --from aligned --lora 8 -o talker",
            '{"step":1,"loss":…',
        ),
        Example(
            "Or teach mini, which talks already, what it is asked here.",
            "vlmkit train instruct answers.jsonl --from mini --steps 2 --batch-size 4 -o taught",
            '{"step":1,"loss":…',
        ),
        Example(
            "What would a run train, and what would it cost?",
            "vlmkit train instruct 2:answers.jsonl shard.tar --preset debug --from aligned -o other --dry-run",
            '{"stage":"instruct","trainable_parameters":…,"total_parameters":…,"samples":…,"steps":20,…',
        ),
    ],
    "eval": [
        Example("Score answers to questions; each figure says how sure it is.", "vlmkit eval vqa answers.jsonl"),
        Example(
            "One figure for a script.",
            "vlmkit eval vqa answers.jsonl --metric exact",
            '{"metric":"exact","value":0.66…,"n":6,"stderr":…,"ci95":[…],"signature":"exact:official|n:6|refs:10|…}',
        ),
        Example(
            "Where is it weak? A page with the worst first.",
            "vlmkit eval vqa answers.jsonl --by category --html worst.html",
        ),
        Example(
            "Which of two models is better, and how surely?",
            "vlmkit eval compare answers.jsonl other.jsonl --metric vqa_accuracy",
            '{"metric":"vqa_accuracy","value":…,"ci95":[…],…"a":…,"b":…,"p":…',
        ),
        Example(
            "Captions, without Java.",
            "vlmkit eval caption captions.jsonl --tokenizer py --metric cider --metric bleu_4",
        ),
        Example(
            "Another tool's file, as it is.",
            "vlmkit eval vqa results.json --truth annotations.json --id question_id --prediction answer",
        ),
        Example(
            "Do captions find their pictures?",
            "vlmkit embed shard.tar | vlmkit eval retrieval --metric text_to_image_recall@5",
            '{"metric":"text_to_image_recall@5","value":…',
        ),
    ],
    "download": [
        Example(
            "What can be downloaded by name, and on what terms?",
            "vlmkit download --list | jq -c '[.name, .bytes, .licence]'",
            '["coco-captions",40850559926,"captions CC BY 4.0, photographs under the terms of Flickr"]\n…',
        ),
        Example(
            "What belongs to a data set, and how is it checked?",
            "vlmkit download --card imagenette",
            '{"name":"imagenette",…',
        ),
    ],
    "demo": [
        Example("See it work.", "vlmkit demo"),
    ],
}
