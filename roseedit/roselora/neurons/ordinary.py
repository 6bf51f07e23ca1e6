"""Ordinary text at which no edit should speak: written for this package, no evaluation set is behind it."""

from __future__ import annotations

import random
from typing import Any
from weakref import WeakKeyDictionary

from roseedit.models.load import LoadedModel
from roseedit.models.lowp import products_in
from roseedit.roselora.anchors import KINDS, SUBJECTS
from roseedit.roselora.config import RoseLoRAHparams
from roseedit.roselora.neurons.looks import Ordinary, look_at_texts
from roseedit.roselora.neurons.mlp import Neurons
from roseedit.roselora.trainer import frozen
from roseedit.roselora.wordings import framed_prompts

KEPT: WeakKeyDictionary[Any, dict[tuple[Any, ...], Ordinary]] = WeakKeyDictionary()

PROSE = (
    "The village lies at the foot of a low hill, about twelve kilometres north of the nearest railway station.",
    "She closed the window, sat down at the kitchen table and began to read the letter for the third time.",
    "In 1887 the company built a second mill on the eastern bank of the river, which burned down nine years later.",
    "To make the dough, mix two cups of flour with a pinch of salt and slowly add warm water until it is smooth.",
    "He scored twenty-one goals in his first season and was chosen as the best young player of the league.",
    "The species is found in dry grassland and open forest, where it feeds on seeds, insects and small lizards.",
    "Critics praised the album for its quiet arrangements, although it sold fewer than ten thousand copies.",
    "A function returns a value; if no value is given, the caller receives an empty result instead of an error.",
    "The storm reached the coast on the morning of 14 September with winds of 180 kilometres per hour.",
    "\"I do not think that we can wait any longer,\" the captain said, and nobody in the room answered him.",
    "The committee met four times during the year and published its report in the following spring.",
    "Water boils at a lower temperature in the mountains because the pressure of the air is lower there.",
    "The church was rebuilt in stone after the fire, and its tower was finished in the fifteenth century.",
    "Most of the passengers were asleep when the train stopped between two stations without any warning.",
    "The battalion crossed the bridge before dawn and held the northern road until the relief arrived.",
    "Her second novel tells the story of three sisters who inherit a lighthouse and cannot agree on its future.",
    "The museum holds a collection of early maps, among them a chart of the coast drawn by hand on parchment.",
    "If the light on the front of the device turns red, unplug it and wait for about thirty seconds.",
    "The district had a population of 34,512 at the last census, spread over an area of 410 square kilometres.",
    "After the war he returned to his trade, opened a small workshop and trained a dozen apprentices.",
    "The film was shot in six weeks with a crew of twenty people and was shown at several festivals.",
    "Prices rose by four per cent in March, mainly because of higher costs for energy and transport.",
    "The bill passed the lower house by 212 votes to 187 and was sent to the senate the next day.",
    "You can reach the lake on foot in about an hour if you follow the path behind the old school.",
    "The experiment was repeated with a larger sample, but no difference between the two groups was found.",
    "During the second half the visitors pressed harder and equalised with a header from a corner kick.",
    "The genus was first described in 1834 from a single specimen collected near the mouth of the river.",
    "My grandmother kept a garden behind the house, and every summer we helped her to pick the beans.",
    "The highway runs along the valley for thirty miles before it turns west and climbs towards the pass.",
    "Dear Mr Hughes, thank you for your message of last Tuesday; we will send the missing parts this week.",
    "The song entered the charts at number eight and stayed in the top forty for eleven weeks.",
    "Light from the star takes about forty years to arrive, so what we see tonight has long since passed.",
    "The king died without an heir, and the crown passed to a cousin who had spent his youth abroad.",
    "Each level of the game has a hidden room that can only be opened with a key from the one before.",
    "The ship was laid down in 1911, launched two years later and sold for scrap after the armistice.",
    "There is no cure for the disease, but the symptoms can be treated if it is recognised early enough.",
    "Please note that the office is closed on public holidays and on the first Monday of each month.",
    "The bridge was designed to carry two lanes of traffic and a footpath on its southern side.",
    "A small group of students gathered outside the library, arguing about the result of the vote.",
    "The cathedral's organ has more than four thousand pipes and was restored at great expense in 1996.",
    "Wolves returned to the region in the nineties after an absence of more than one hundred years.",
    "The article says that the two firms had been in talks since autumn but could not agree on a price.",
    "He was born in a mining town, the youngest of seven children, and left school at the age of thirteen.",
    "The method works well for short texts; for longer ones the memory that is needed grows quickly.",
    "Rain fell all night, and in the morning the fields on both sides of the road were under water.",
    "The team finished third in its group and did not qualify for the next round of the tournament.",
    "What is the best way to learn a language? Speak it every day, even if you make many mistakes.",
    "The painting shows a woman at a well; in the background there are three riders and a ruined wall.",
    "The treaty was signed in the summer and gave both sides the right to fish in the northern waters.",
    "Cut the paper along the dotted line, fold it twice and glue the two shorter edges together.",
    "The new line has eleven stations, four of them underground, and carries about 60,000 people a day.",
    "By the time the doctor arrived the boy had fallen asleep, and his fever was already going down.",
    "The mineral forms dark green crystals and is found in rocks that were once deep below the sea.",
    "Sales of the first model were slow, so the firm lowered the price and added a second colour.",
    "The poem has twelve lines of equal length and was probably written for a wedding at the court.",
    "Under the new rules a player who leaves the field may not come back before the next interval.",
    "The volcano last erupted in 1952 and is watched by a network of instruments on its slopes.",
    "They spoke in low voices about the harvest, the price of salt and the soldiers on the other bank.",
    "The theory explains why the two clocks differ, but it says nothing about the cause of the delay.",
    "In the final chapter the author compares the three reforms and asks which of them has lasted.",
)  # fmt: skip
PROMPTS = 96  # of the kind that edits ask: a well-known name and a relation


def ordinary_texts(seed: int) -> list[str]:
    """Prose, and questions about others.

    Args:
        seed: Which pairs of names and relations are drawn.

    Returns:
        The texts.
    """
    rng = random.Random(f"{seed}/ordinary")
    pairs = [(rng.choice(SUBJECTS), rng.choice(KINDS)[0]) for _ in range(PROMPTS)]
    return [*PROSE, *framed_prompts(pairs, rng)]


def ordinary_look(loaded: LoadedModel, neurons: Neurons, hparams: RoseLoRAHparams, tokens: int) -> Ordinary:
    """What a layer's MLP does in ordinary text, remembered for as long as no weight of the model is written.

    Args:
        loaded: The model.
        neurons: The layer's neurons.
        hparams: The settings.
        tokens: Most tokens in one pass.

    Returns:
        The look.
    """
    written = sum(p._version + id(p) for p in loaded.model.parameters())
    key = neurons.layer, hparams.seed, hparams.train_dtype, written
    kept = KEPT.setdefault(loaded.model, {})
    if key not in kept:
        everything = products_in(loaded, hparams.train_dtype)
        with frozen(loaded.model), everything():
            found = look_at_texts(loaded, neurons, ordinary_texts(hparams.seed), tokens)
        for old in [known for known in kept if known[-1] != written]:
            del kept[old]
        kept[key] = found
    return kept[key]
