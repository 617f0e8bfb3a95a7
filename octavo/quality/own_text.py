"""The text of receipts: a few hundred words written for this purpose, which no model was calibrated on (and none may be).

Short passages of different kinds, because a receipt is measured on a few hundred tokens: explanation, story, dialogue, code, arithmetic, data, letters.
"""

from __future__ import annotations

from .texts import EvaluationText

PASSAGES = (
    """A tide mill stores the rising sea behind a gate and lets it out through a wheel once the water outside has fallen. It needs no river and no
wind, and its owner can say a year ahead at which hours it will grind. What it cannot do is choose them: twice a day the work begins about fifty
minutes later than it did the day before, so millers by the sea slept when the moon allowed it.
""",
    """Mara counted the keys again. Eleven hung on the board, and there had been twelve at noon. The attic, then. She took the lamp, although the
stairs were hardly dark, and climbed slowly enough for the third step to creak. Above her something was set down with great care, the way one puts a
cup on a table in a house where others are asleep.
""",
    """def running_mean(values, width):
    \"\"\"Mean of the last `width` values at each place; of fewer at the beginning.\"\"\"
    total, result = 0.0, []
    for index, value in enumerate(values):
        total += value
        if index >= width:
            total -= values[index - width]
        result.append(total / min(index + 1, width))
    return result
""",
    """Question: A baker sells 48 rolls in the morning and half as many in the afternoon. Each roll costs 35 cents. How much does she take in?
Answer: In the afternoon she sells 48 / 2 = 24 rolls, so 48 + 24 = 72 rolls in all. 72 rolls at 35 cents are 72 * 35 = 2520 cents. She takes in 25.20.
""",
    """User: My basil leaves turn yellow from the bottom up. Am I watering too much?
Assistant: That is the most likely reason. Push a finger two centimetres into the soil; if it still feels damp, wait another day. Make sure that the
pot can drain, and take off the yellow leaves. If the new ones come out pale as well, a little fertilizer helps.
""",
    """The glass harmonica was heard in concert halls for some sixty years and then almost never again. Its player turns a row of bowls with a pedal
and touches the wet rims. Physicians of the time blamed it for melancholy, its makers for the price of the glass; more likely, the orchestra around it
simply grew too loud.
""",
    """{"station": "north pier", "date": "2021-03-14", "readings": [{"hour": 6, "wind_kn": 12, "gust_kn": 19}, {"hour": 12, "wind_kn": 17,
"gust_kn": 26}, {"hour": 18, "wind_kn": 9, "gust_kn": 14}], "remarks": "sensor cleaned at noon"}
""",
    """Dear Mr. Okafor, thank you for the plans, which arrived on Tuesday. The roof is as we discussed it. I have two wishes: could the window on the
landing be a hand's breadth lower, and would it be possible to keep the old door? It sticks in wet weather, but my daughter has measured herself
against it since she could stand. Yours sincerely, Helen Brandt
""",
    """Enzymes speed up a reaction without being used up by it. They hold the molecules in the position in which the change costs the least energy.
Most work within a narrow range of temperature: below it the molecules meet too seldom, above it the enzyme loses its shape, and with it the place
where the reaction happens.
""",
    """To repair a puncture, let out the rest of the air and lever one side of the tyre off the rim. Pull out the tube, pump it up and listen, or hold
it under water. Roughen the place around the hole, apply the glue thinly, and wait until it looks dry before you press on the patch. Feel along the
inside of the tyre for the thorn; it is often still there.
""",
    """In the second half the visitors pressed higher up the field and were rewarded after 63 minutes, when a long throw was not cleared and Lindqvist
scored from twelve metres. The home side replaced three players and came close twice, but the score remained 1-2. Both teams now have 31 points from
19 games; the next one is on Saturday.
""",
    """A compiler that reorders two writes does so because nothing in the program says that someone else is watching. With one thread that is true.
With two, the other may see the flag before the data that it announces. The remedy is not to turn the optimizer off but to say which writes are a
message: a release here, an acquire there, and everything before the one is visible after the other.
""",
)

OWN_TEXT = EvaluationText("receipt", tuple(passage + "\n" for passage in PASSAGES))
