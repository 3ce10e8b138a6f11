"""What a picture surely shows or surely does not, by its captions: things that people mention where they see them."""

from typing import NamedTuple

from vlmkit.train.mentions import ANIMALS, PEOPLE
from vlmkit.train.scene import FIGURES, Scene

CREATURES = "animal animals pet pets creature creatures zoo"
HUMANS = (
    "hand hands arm arms leg legs face he she him her his hers man woman leash performers men women human humans lap "
    "military army police parade wearing dressed skateboarding snowboarding skiing surfing riding family twins mohawk "
    "santa bikers racers players climbers surfers skiers riders dressed costume uniforms hair rollerblades pedestrians"
)
WET = (
    "water ocean sea lake pool river wave waves surf surfing surfer surfers surfboard swim swims swimming swimmer splash "
    "splashes splashing stream fountain puddle wet rain beach boat boats kayak kayaking kayaker canoe raft rafting fish "
    "fishing dock sprinkler hose waterfall creek pond dive dives diving diver harbor bath bathing bathtub tub shore bridge "
    "coast pier underwater rapids sail sailboat bay tide lagoon paddle paddling wading wakeboard wakeboarder jetski "
    "sink bikini swimsuit duck ducks seagull snow ice snowy mud muddy hydrant spray shower soaked drinking marsh swamp"
)
COLD = (
    "snow snowy snowboard snowboarder snowboarding snowboards ski skis skier skiers skiing sled sledding sledge ice icy "
    "winter frozen slope slopes mountain mountains skating glacier cold white hill snowball snowman snowmobile avalanche"
)
WHEELS = (
    "bike bikes bicycle bicycles biker bikers cyclist cyclists bicyclist bicyclists bmx cycling cycle unicycle motorcycle "
    "motorcycles motorcyclist motorbike motorbikes dirtbike rider riders rides riding ride race races racing racer racers "
    "pedals pedaling motocross scooter tricycle motor trick tricks ramp helmet helmets biking stunt stunts handlebars "
    "quad atv wheels wheelie cart vehicle traffic"
)
BALLS = (
    "ball balls soccer tennis basketball basketballs football footballs baseball baseballs volleyball rugby golf cricket "
    "softball game games toy toys bowling juggling juggles juggler player players sport sports team teams lacrosse polo "
    "hockey pool pitcher batter dodgeball billiards catch catching fetch fetching throw throwing throws kick kicking kicks "
    "court goalie goal quarterback racket bat object something playing play plays round orange sphere"
)
ROADS = (
    "car cars vehicle vehicles truck trucks taxi taxis suv jeep van traffic road roads street streets parking race racing "
    "drive drives driving driver bus auto automobile racetrack city highway driveway intersection crosswalk curb sidewalk "
    "downtown limousine motorcycle garage urban town"
)
SANDS = (
    "beach beaches sand sandy ocean sea shore shoreline waves wave surf surfing surfer water coast coastal bay tide dunes "
    "desert seashore lake island boardwalk dune pier"
)
BOATS = (
    "boat boats kayak kayaks kayaking kayaker canoe canoes canoeing raft rafts rafting rafters sail sailing sailboat "
    "sailboats ship ships dock harbor ferry rowing row paddle paddling paddles gondola jetski wakeboarding vessel pier "
    "rapids tube fishing ocean sea lake river yacht motorboat marina"
)
BOARDS = (
    "skateboard skateboards skateboarder skateboarders skateboarding skate skates skater skaters skating board boards "
    "trick tricks ramp ramps grind grinds grinding rail railing rails halfpipe pipe stunt stunts longboard"
)
DISCS = "frisbee frisbees disc disk toy toys ring object catch catches catching something plate plastic flying"
MUSIC = (
    "guitar guitars music musical musician musicians instrument instruments band stage concert sings singing singer rock "
    "plays playing performs performing performer performers microphone song"
)
FLOWS = "pool pools swim swims swimming swimmer swimmers dive dives diving water slide underwater"
LADIES = (
    "woman women lady ladies female females mother mom bride girl girls she her grandmother daughter sister feminine"
)
GENTS = (
    "man men guy guys gentleman male males father dad groom boy boys he him businessman cowboy fisherman brother son"
)


class Thing(NamedTuple):
    """`asked` as a question names it; `classes` that show it; words besides that leave it possible."""

    asked: str
    classes: frozenset[str]
    possible: frozenset[str]


def _thing(asked: str, classes: str, possible: str) -> Thing:
    return Thing(asked, frozenset(classes.split()), frozenset(possible.split()))


SEXLESS = " ".join(["person", "child"])
THERE = [
    _thing("a dog", "dog", f"{CREATURES} dogs sled leash paw paws"),
    _thing(
        "a horse", "horse", f"{CREATURES} jockey jockeys cowboy cowboys rodeo polo carriage equestrian cart bull rider"
    ),
    _thing("a bird", "bird", f"{CREATURES} flock wings feathers birdcage chicken chickens rooster penguin turkey kite"),
    _thing("a cat", "cat", CREATURES),
    _thing("a person", " ".join(PEOPLE), HUMANS),
    _thing("a man", "man", f"{GENTS} person child"),
    _thing("a woman", "woman", f"{LADIES} person child"),
    _thing("a boy", "boy", f"{GENTS} person child"),
    _thing("a girl", "girl", f"{LADIES} person child"),
    _thing("a child", "child boy girl", "person young little small toddler students class school teenage family"),
    _thing("a ball", "ball", BALLS),
    _thing("a frisbee", "frisbee", DISCS),
    _thing("a bike", "bike", WHEELS),
    _thing("a motorcycle", "motorcycle", WHEELS),
    _thing("a skateboard", "skateboard", BOARDS),
    _thing("a boat", "boat kayak canoe raft", BOATS),
    _thing("a car", "car", ROADS),
    _thing("a guitar", "guitar", MUSIC),
    _thing("a swimming pool", "pool", FLOWS),
    _thing("snow", "", COLD),
    _thing("water", "", WET),
    _thing("a beach", "", SANDS),
]
SIGHTS = {
    "snow": {"snow"},
    "water": {"water", "ocean", "lake", "pool", "river", "sea", "pond", "stream", "creek"},
    "a beach": {"beach"},
}


def shown(scene: Scene, thing: Thing) -> bool | None:
    """Whether the picture shows `thing`; None where its captions leave that open."""
    if thing.classes:
        told = len(scene.named(thing.classes))
    else:
        told = sum(bool(SIGHTS[thing.asked] & set(caption)) for caption in scene.captions)
    if told >= 2:
        figure = scene.words & FIGURES and thing.classes & (ANIMALS.keys() | PEOPLE.keys())
        return None if figure else True
    if told or scene.words & thing.possible or thing.classes & {"bull"}:
        return None
    return None if scene.named(thing.possible) else False
