"""A made set of 300 pictures, of which 100 have words in them, and queries for both.

    python tests/benchmarks/words_set.py FOLDER

Writes pictures, `records.jsonl` (`id`, `image`, `kind`, `lines`, and of those with words `font`, `size`, `angle`) and
`queries.jsonl` (`query`, `by`: words, meaning or both, and the ids `relevant` to it). Receipts, invoices, signs, notes
and posters on photographs in the fonts of matplotlib and Pillow, upright, askew and turned; the others are parts of the
photographs of scikit-image and scikit-learn, and drawings. The same bytes each time with the same versions of these.
"""

import json
import random
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont, ImageOps


def listed(text: str, sep: str = ",") -> list[str]:
    return text.split(sep)


SANS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf", "")  # "": Pillow's own
SERIF = ("DejaVuSerif.ttf", "DejaVuSerif-Italic.ttf", "STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf")
MONO = ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf", "cmtt10.ttf")
PLAIN = (*SANS, *SERIF, "cmr10.ttf", "cmss10.ttf")
ANGLES = (0, 0, 0, 0, 0, 2, -3, 7, -12, 90, 180, 270)
PAPERS = ("white", "#fffdf0", "#f4f4f4", "#e8f0e8")
SIGNS = (("white", "#b00020"), ("black", "#f2c200"), ("white", "#0b5394"), ("white", "#1b5e20"), ("black", "white"))
PHOTOS = {  # names of photographs, and what a query calls them
    "chelsea": "a cat",
    "coffee": "a cup of coffee",
    "astronaut": "an astronaut",
    "rocket": "a rocket on the launch pad",
    "camera": "a man with a camera on a tripod",
    "coins": "old coins",
    "horse": "the silhouette of a horse",
    "moon": "craters of the moon",
    "grass": "a lawn",
    "brick": "a brick wall",
    "flower": "a flower",
    "china": "a temple in China",
}
COLORS = ("red", "green", "blue", "yellow", "black", "orange")
SHAPES = ("circle", "square", "triangle")
GOODS = listed(
    "espresso,croissant,lemonade,rye bread,apple pie,green tea,tomato soup,sandwich,mineral water,cheesecake"
)
SHOPS = listed(
    "Cafe Morgenrot,Bakery Lindqvist,Kiosk Zamora,Hotel Bellevue,Pharmacy Okafor,Bookshop Quill,Garden Centre Thorne,"
    "Trattoria Vesuvio,Corner Market Hadley,Noodle House Sakura,Fishmonger Darby,Tool Shop Wrench,Florist Petunia,"
    "Cinema Rialto,Ferry Line Nordvik,Bike Works Pedalo,Tea Room Assam,Record Store Vinyl,Toy Shop Pinocchio,Deli Ruben"
)
FIRMS = listed(
    "Harbour Logistics,Northwind Traders,Albatross Printing,Copperfield Plumbing,Juniper Software,Meridian Insurance,"
    "Falcon Courier,Sterling Roofing,Evergreen Energy,Pinnacle Dental,Bluebird Travel,Granite Masonry,Willow Catering,"
    "Orion Telecom,Amber Textiles,Cobalt Mining,Velvet Upholstery,Quartz Watches,Maple Furniture,Saffron Spices"
)
WARNINGS = listed(
    "NO PARKING|Tow away zone;EMERGENCY EXIT|Keep door closed;WET FLOOR|Caution;PLATFORM 9|Trains to Edinburgh;"
    "HIGH VOLTAGE|Danger of death;BEWARE OF|THE DOG;LIBRARY|Silence please;CAR PARK|Level 3;SWIMMING POOL|No diving;"
    "HARD HAT AREA|Authorised staff only;BUS STOP|Line 42;TICKETS|Sold out;PUSH|Ziehen verboten;RESTROOMS|Second floor;"
    "CASH ONLY|No cards;GATE B17|Boarding 18:45;OPEN|Monday to Friday;FRESH STRAWBERRIES|2 for 5.00;SPEED LIMIT|30;"
    "Straße gesperrt|Umleitung über Nürnberg",
    sep=";",
)
NOTES = (
    "Dear Margaret, the violin lessons move to Thursday at half past four. Please bring the sheet music of the sonata.",
    "Pancakes: two eggs, a quarter litre of milk, 125 grams of flour, a pinch of salt. Fry in butter until golden.",
    "Meeting notes: the budget for the telescope was approved. Henrietta orders the mirror, Oswald builds the mount.",
    "The lighthouse keeper wrote every evening in his diary about the weather, the ships and the seagulls on the roof.",
    "Wifi password of the guest house: seven purple elephants. Breakfast is served from seven to ten in the orangery.",
    "To repot the orchid, water it well, loosen the roots with care and use bark instead of ordinary potting soil.",
    "Lieber Jürgen, die Schlüssel für das Gartenhäuschen liegen unter dem großen Blumentopf. Viele Grüße, Käthe",
    "The committee regrets that the application for the scholarship in marine biology arrived after the deadline.",
    "Chess club: round four starts on Saturday. White plays the Sicilian defence against Benedikt on board two.",
    "Prescription: take one tablet of ibuprofen after each meal for five days, and drink plenty of water.",
    "The sourdough starter needs feeding twice a day. Keep it in the pantry, covered with a clean linen cloth.",
    "Rental agreement for the accordion: twelve months from October, deposit of eighty pounds, insurance included.",
    "Choir rehearsal is cancelled because of the snowstorm. We shall sing the requiem in February instead.",
    "Instructions: attach panel C to panel D with four hexagonal screws, then slide in the drawer from the front.",
    "Our parrot Archibald escaped through the conservatory window. He whistles the national anthem when hungry.",
    "The archaeologists found a bronze bracelet, three amphorae and the foundations of a Roman bathhouse.",
    "Syllabus: thermodynamics in the first term, electromagnetism in the second, quantum mechanics in the third.",
    "Please return the wheelbarrow to allotment number sixty-three before the harvest festival. Kind regards, Mabel",
    "The marathon route crosses the suspension bridge, follows the canal and ends behind the old observatory.",
    "Voicemail from the dentist: the appointment on Tuesday is moved to noon. Please confirm by telephone.",
)
POSTERS = (  # photograph, lines, what both names: the picture and its words
    ("chelsea", "LOST CAT|Minka, grey tabby|Call 0176 4419", "poster of a lost cat Minka"),
    ("chelsea", "Adopt me!|Shelter Pawprint", "a cat of the shelter Pawprint"),
    ("chelsea", "Grumpy before|breakfast", "a cat, grumpy before breakfast"),
    ("coffee", "Barista course|every Wednesday", "a cup of coffee, barista course"),
    ("coffee", "Fair trade|Guatemala roast", "coffee roast from Guatemala"),
    ("coffee", "But first,|espresso", "a cup, but first espresso"),
    ("astronaut", "Join the|crew of Artemis", "an astronaut of Artemis"),
    ("astronaut", "Science night|Planetarium", "an astronaut, planetarium night"),
    ("rocket", "Countdown|T minus 10", "a rocket, countdown T minus 10"),
    ("rocket", "Model rockets|Workshop Huntsville", "rocket workshop Huntsville"),
    ("flower", "Happy birthday|Genevieve", "a flower for the birthday of Genevieve"),
    ("flower", "Get well soon|Uncle Theodore", "flower, get well soon Theodore"),
    ("flower", "Garden show|Chelsea 2027", "flower of the garden show 2027"),
    ("china", "Visit Beijing|Flights from 499", "temple, flights to Beijing"),
    ("china", "Tai chi|Beginners welcome", "temple, tai chi for beginners"),
    ("horse", "Riding school|Silverhoof", "a horse, riding school Silverhoof"),
    ("horse", "Rodeo tonight|Gates open at six", "a horse at the rodeo tonight"),
    ("moon", "Lunar eclipse|28 August", "the moon, lunar eclipse in August"),
    ("moon", "Moonlight sonata|Concert Hall", "moon, concert of the moonlight sonata"),
    ("camera", "Photo contest|Black and white", "a photographer, photo contest"),
)


@dataclass
class Made:
    """A picture, what is written in it, and how."""

    name: str
    picture: Image.Image
    kind: str
    lines: list[str] = field(default_factory=list)
    photo: str = ""  # the photograph that it is made of
    query: str = ""  # by its words
    both: str = ""  # a query by words and meaning
    how: dict[str, str | int] = field(default_factory=dict)

    def record(self) -> dict[str, object]:
        return {"id": self.name, "image": self.name, "kind": self.kind, "lines": self.lines, **self.how}


def font_of(name: str, size: int) -> ImageFont.FreeTypeFont:
    if not name:
        return ImageFont.load_default(size)  # type: ignore[return-value]
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf", name)), size)


def photographs() -> dict[str, Image.Image]:
    import skimage
    import sklearn.datasets

    found = {}
    places = [Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images"]
    for name in PHOTOS:
        path = next(path for place in places for path in place.glob(f"{name}.*"))
        found[name] = Image.open(path).convert("RGB")
    return found


def written(
    lines: list[str], name: str, size: int, angle: int, colors: tuple[str, str], under: Image.Image | None = None
) -> Image.Image:
    """`lines` in a font on paper, or at the foot of the picture `under`, turned by `angle`. A tab goes to a column."""
    font, margin = font_of(name, size), 2 * size
    ink, paper = colors
    column = int(max(font.getlength(line.split("\t")[0]) for line in lines) + 3 * size)
    width = max(column * line.count("\t") + font.getlength(line.split("\t")[-1]) for line in lines)
    height = int(len(lines) * 1.5 * size)
    page = Image.new("RGB", (int(width) + 2 * margin, height + 2 * margin), paper)
    left, top = margin, margin
    if under is not None:
        shown = ImageOps.fit(under, (max(page.width, 480), 360))
        page = Image.new("RGB", (shown.width, shown.height + page.height - margin), paper)
        page.paste(shown)
        top = shown.height + margin // 2
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        for place, part in enumerate(line.split("\t")):
            draw.text((left + place * column, top + number * 1.5 * size), part, font=font, fill=ink)
    return page.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=paper)


def receipt(number: int, dice: random.Random) -> tuple[list[str], str, tuple[str, ...], tuple[int, int]]:
    bought = [(thing, dice.randint(90, 1900)) for thing in dice.sample(GOODS, dice.randint(2, 5))]
    rows = [f"{thing}\t{price / 100:.2f}" for thing, price in bought]
    date = f"{dice.randint(1, 28):02}.{dice.randint(1, 12):02}.2026"
    total = f"TOTAL\t{sum(price for _, price in bought) / 100:.2f}"
    return [SHOPS[number], date, *rows, total, "Thank you!"], SHOPS[number], MONO, (14, 28)


def invoice(number: int, dice: random.Random) -> tuple[list[str], str, tuple[str, ...], tuple[int, int]]:
    code = f"2026-{dice.randint(100, 999)}{number:02}"
    net = dice.randint(10_000, 900_000)
    amounts = [f"Net amount\t{net / 100:,.2f} EUR", f"VAT 19%\t{net * 0.19 / 100:,.2f} EUR"]
    rows = [FIRMS[number] + " Ltd.", f"Invoice No. {code}", "", *amounts, f"Total due\t{net * 1.19 / 100:,.2f} EUR"]
    rows += ["", f"Please pay within {dice.choice((7, 14, 30))} days."]
    return rows, f"invoice {code}", PLAIN, (14, 32)


def sign(number: int, dice: random.Random) -> tuple[list[str], str, tuple[str, ...], tuple[int, int]]:
    lines = WARNINGS[number].split("|")
    return lines, " ".join(lines).lower(), SANS, (32, 64)


def note(number: int, dice: random.Random) -> tuple[list[str], str, tuple[str, ...], tuple[int, int]]:
    words = [word.strip(".,:") for word in NOTES[number].split()]
    rare = sorted(sorted(set(words)), key=len)[-2:]
    fonts = PLAIN if NOTES[number].isascii() else (*SANS, *SERIF)
    return textwrap.wrap(NOTES[number], 36), " ".join(rare), fonts, (16, 30)


def with_words(photos: dict[str, Image.Image], dice: random.Random) -> Iterator[Made]:
    kinds: dict[str, Callable] = {"receipt": receipt, "invoice": invoice, "sign": sign, "note": note}
    for kind, make in kinds.items():
        for number in range(20):
            lines, query, fonts, (small, large) = make(number, dice)
            name, size, angle = dice.choice(fonts), dice.randint(small, large), dice.choice(ANGLES)
            colors = dice.choice(SIGNS) if kind == "sign" else ("black", dice.choice(PAPERS))
            picture = written(lines, name, size, angle, colors)
            how: dict[str, str | int] = {"font": name or "Pillow", "size": size, "angle": angle}
            seen = [line.replace("\t", " ") for line in lines if line]
            yield Made(f"{kind}-{number:02}.png", picture, kind, seen, query=query, how=how)
    for number, (photo, text, both) in enumerate(POSTERS):
        lines, name, size = text.split("|"), dice.choice(PLAIN), dice.randint(24, 44)
        picture = written(lines, name, size, 0, dice.choice(SIGNS), photos[photo])
        how = {"font": name or "Pillow", "size": size, "angle": 0}
        yield Made(f"poster-{number:02}.jpg", picture, "poster", lines, photo, " ".join(lines), both, how)


def without_words(photos: dict[str, Image.Image], dice: random.Random) -> Iterator[Made]:
    for number in range(144):
        photo = list(photos)[number % len(photos)]
        whole = photos[photo]
        part = dice.uniform(0.7, 1.0)
        width, height = int(whole.width * part), int(whole.height * part)
        left, top = dice.randint(0, whole.width - width), dice.randint(0, whole.height - height)
        picture = whole.crop((left, top, left + width, top + height))
        picture = ImageOps.mirror(picture) if dice.random() < 0.5 else picture
        picture.thumbnail((dice.choice((320, 480, 640)),) * 2)
        yield Made(f"photo-{number:03}.jpg", picture, "photo", photo=photo)
    for number in range(56):
        color, shape = COLORS[number % len(COLORS)], SHAPES[number // len(COLORS) % len(SHAPES)]
        picture = Image.new("RGB", (256, 256), "white")
        side = dice.randint(60, 180)
        left, top = dice.randint(10, 246 - side), dice.randint(10, 246 - side)
        sides = {"circle": 64, "square": 4, "triangle": 3}[shape]
        middle = (left + side / 2, top + side / 2, side / 2)
        ImageDraw.Draw(picture).regular_polygon(middle, sides, fill=color)
        yield Made(f"shape-{number:02}.png", picture, "shape", photo=f"a {color} {shape}")


def queries(made: list[Made]) -> Iterator[dict[str, object]]:
    for one in made:
        if one.query:
            yield {"query": one.query, "by": "words", "relevant": [one.name]}
        if one.both:
            yield {"query": one.both, "by": "both", "relevant": [one.name]}
    for photo in dict.fromkeys(one.photo for one in made if one.photo):
        relevant = [one.name for one in made if one.photo == photo]
        yield {"query": PHOTOS.get(photo, photo), "by": "meaning", "relevant": relevant}


def make(folder: Path) -> list[Made]:
    """Write the set into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    dice, photos = random.Random(0), photographs()
    made = [*with_words(photos, dice), *without_words(photos, dice)]
    for one in made:
        one.picture.save(folder / one.name, quality=92)
    files = {"records": [one.record() for one in made], "queries": list(queries(made))}
    for name, rows in files.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return made


if __name__ == "__main__":
    pictures = make(Path(sys.argv[1]))
    print(len(pictures), "pictures:", dict(Counter(one.kind for one in pictures)))
