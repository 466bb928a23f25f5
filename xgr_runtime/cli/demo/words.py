"""The word lists behind the demo's made-up products.

Code a of a SID names a product, b its maker, c its variant, so that a ranked list can be judged by eye:
things that are bought together share a line below, things by one maker share a name.
"""

# One department a line; neighbours on a line are bought together.
DEPARTMENTS: tuple[tuple[str, ...], ...] = tuple(
    tuple(product.strip() for product in line.split(","))
    for line in """
espresso machine, coffee grinder, milk frother, coffee tamper, kettle, coffee scale, travel mug, descaling kit
chef's knife, cutting board, honing steel, paring knife, knife roll, kitchen shears, bread knife, knife rack
cast-iron skillet, saucepan, stockpot, glass lid, silicone spatula, ladle set, oven mitts, trivet
stand mixer, mixing bowl, dough scraper, proofing basket, bread tin, rolling pin, kitchen scale, cake ring
road bike, bike helmet, cycling gloves, bike pump, water bottle cage, rear light, chain lube, multi-tool
running shoes, running socks, running shorts, hydration vest, sports watch, headlamp, foam roller, race belt
two-person tent, sleeping bag, sleeping mat, camping stove, gas canister, trekking poles, dry bag, camp chair
climbing shoes, chalk bag, harness, belay device, carabiner, climbing rope, crash pad, finger tape
yoga mat, yoga block, stretching strap, cushion, resistance band, kettlebell, jump rope, gym towel
swim goggles, swimsuit, swim cap, pull buoy, kickboard, nose clip, swim fins, mesh bag
acoustic guitar, guitar strings, guitar capo, guitar strap, clip-on tuner, guitar stand, guitar case, pick tin
digital piano, piano bench, sustain pedal, music stand, headphones, keyboard cover, metronome, piano lamp
studio microphone, audio interface, mic stand, pop filter, XLR cable, monitors, acoustic panel, boom arm
drum kit, drumsticks, practice pad, drum throne, crash cymbal, drum key, snare head, ear plugs
mirrorless camera, prime lens, camera strap, memory card, spare battery, tripod, camera bag, lens cloth
desktop printer, ink cartridge, photo paper, label maker, paper trimmer, laminator, envelopes, binding combs
mechanical keyboard, keycap set, wrist rest, gaming mouse, mouse mat, monitor arm, desk lamp, USB hub
game console, controller, charging dock, gaming headset, thumb grips, capture card, game case, media remote
fountain pen, ink bottle, notebook, pencil case, blotting paper, mechanical pencil, eraser, letter opener
watercolour set, round brush, sketch pad, masking tape, palette, easel, fixative spray, charcoal sticks
sewing machine, thread set, scissors, pin cushion, bobbin box, measuring tape, seam ripper, pattern paper
knitting needles, merino yarn, stitch markers, yarn bowl, crochet hook, blocking mat, row counter, project bag
board game, card sleeves, dice set, playing mat, puzzle, puzzle roll, chess set, chess clock
building bricks, train set, wooden blocks, play kitchen, plush bear, story book, night light, toy chest
baby carrier, nappy bag, baby bottle, bottle warmer, muslin cloths, high chair, changing mat, teething ring
dog bed, dog lead, dog collar, chew toy, dog bowl, treat pouch, dog brush, car harness
cat tree, scratching post, litter tray, litter scoop, cat tunnel, water fountain, catnip mouse, pet carrier
garden spade, pruning shears, work gloves, watering can, seed tray, soil, plant labels, kneeling pad
monstera plant, plant pot, plant mister, grow light, moss pole, moisture meter, plant food, hanging basket
cordless drill, drill bit set, screwdrivers, spirit level, wall plugs, stud finder, tool belt, safety glasses
linen bedding, down pillow, duvet, mattress topper, bedside lamp, sleep mask, throw blanket, alarm clock
face cleanser, face serum, sun cream, clay mask, cotton pads, lip balm, hand cream, bath salts
""".strip().splitlines()
)
PRODUCTS: tuple[str, ...] = tuple(product for department in DEPARTMENTS for product in department)


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


MAKER_STEMS = _list(
    "Alder, Brisk, Corvo, Dunmore, Elling, Farrow, Grevel, Holm, "
    "Isar, Juno, Kestrel, Lumen, Marlo, Nord, Oster, Pell"
)
MAKER_TAILS = _list(
    "& Co, Works, Supply, Labs, House, Atelier, Goods, Union, "
    "Bros, Studio, Forge, Field, Line, Craft, Port, Makers"
)
COLOURS = _list(
    "black, white, sand, slate, moss, rust, navy, plum, ochre, teal, coral, ash, cream, olive, cobalt, copper"
)
EDITIONS = _list(
    "classic, mini, plus, pro, travel, original, second series, light, deluxe, everyday, heritage, "
    "compact, large, sport, signature, limited"
)


def title(product: int, maker: int, variant: int) -> str:
    """The name of the item with these codes: "Holm Works coffee grinder, pro, moss"."""
    stem, house = maker % len(MAKER_STEMS), maker // len(MAKER_STEMS)
    # Common makers have neighbouring codes; the sum gives them unlike names and still tells all 256 apart.
    tail = MAKER_TAILS[(stem + house) % len(MAKER_TAILS)]
    colour = COLOURS[variant % len(COLOURS)]
    edition = EDITIONS[variant // len(COLOURS) % len(EDITIONS)]
    return f"{MAKER_STEMS[stem]} {tail} {PRODUCTS[product % len(PRODUCTS)]}, {edition}, {colour}"
