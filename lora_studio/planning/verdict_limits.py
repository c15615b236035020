"""The limits of the verdicts on training runs, each with its reason.

They were chosen on one half of the simulated curves of `tools/judge_verdicts.py`; docs/verdicts.md has how often each
verdict is right on the other half and on real runs. Those of the samples of a run are not yet
proven on many runs; docs/measures.md has how often those of tests, at the end, are right.
"""

from __future__ import annotations

# A change counts, and is printed with its range, at this many standard errors: 1 in 700 by chance on either side.
STANDARD_ERRORS = 3.0
# The lowest of many windows is low by chance, too, so a rise above it needs more.
STANDARD_ERRORS_OF_RISE = 5.0

MIN_STEPS = 50  # a step is mostly noise: fewer say nothing
# A window of the run that is compared with another one: what is to be named within 15% of the run has to show in it.
WINDOW, MIN_WINDOW = 0.12, 20

# Rises: less is often noise, and repaired by the falling rate of the schedule; more is seen in the samples.
MIN_RISE = 0.03
STEEP_RISE = 0.3
# Finite, but broken: no rate makes a LoRA forget half of what the base can, and come back. A short window is enough.
BROKEN_RISE = 0.5
BROKEN_WINDOW, MIN_BROKEN_WINDOW = 0.03, 10
# The fixed-noise loss of training images above that of the base: the LoRA does harm, even where no rise was seen.
WORSE_THAN_BASE = 0.1

# A run at a hundredth of the rate ends at 2% to 3%; one that learns is far beyond in its first half.
MIN_FALL, MIN_FALL_BY = 0.03, 0.5
MIN_SHARE_OF_RUN = 0.1  # before, warmup and the first batches decide

# A plateau: at the latest pace, a further run of the same length would add less than this share of the fall so far.
PLATEAU_PACE = 0.4
PLATEAU_SPAN = 0.14  # of the run, over which that pace is taken at least
# Without a fixed-noise loss, the last half is flat if its change is surely below a tenth, or a third of the fall.
MAX_FLAT_CHANGE, MAX_FLAT_SHARE = 0.1, 1 / 3

# Without a validation split: the LoRA halves the base's loss on its training images. What can be learned from them for
# other images is less: healthy runs end above 0.58, those at 3 to 10 times their rate below 0.5, and a validation split
# of the same runs shows overfitting long before.
MEMORISED_LEVEL = 0.5

# Validation losses vary, as the weights do. Means of three are compared where there are enough, else of two. The noise
# is known from this many second differences on; before, that of four validation images is assumed.
MIN_FOR_MEANS_OF_3 = 8
MIN_DIFFERENCES, USUAL_FIXED_NOISE = 4, 0.01

# NaN that comes and goes: a step in ten is lost, and a rate that overflows so often will do so for good.
MAX_NAN_SHARE, MIN_NAN_STEPS = 0.1, 5

# Samples: means of a few pictures differ by chance; a sign counts beyond this many standard errors.
STANDARD_ERRORS_OF_PICTURES = 2.0
# The distance to the nearest training image, over the median distance of a training image to its own nearest; by
# features, and by the pixels of thumbnails.
COPY_RATIO, COPY_RATIO_OF_THUMBNAILS = 0.35, 0.35
# Variety of the samples, over the lower one of that before training and that of the training images.
COLLAPSED_VARIETY = 0.25
# Contrast and saturation, over the lower one before training and of the training images: those may be pale themselves.
WASHED_OUT_CONTRAST, WASHED_OUT_SATURATION = 0.5, 0.4
# Above the higher one of the two: the share of black and white pixels, and the saturation by a factor.
BURNT_CLIPPED, BURNT_SATURATION = 0.25, 1.6

# Tests, at strength 1. Below this trigger response, the trigger word hardly means more than it did to the base.
MIN_TRIGGER_RESPONSE = 1.5
# Above this leakage, prompts without the trigger word change nearly as those with it.
MAX_LEAKAGE = 0.7
# Likeness to the training images: below the first, hardly anything was learned; below the second, too little of it
# answers to the trigger word. Without the trigger word, over that with it: above, the concept shows in any prompt.
MIN_LIKENESS, GOOD_LIKENESS = 0.2, 0.5
MAX_LIKENESS_WITHOUT = 0.5
# Both lie halfway between bad and good LoRAs of two styles (docs/measures.md), their standard errors included. The
# content of prompts that images keep: overtrained ones reach 0.40, good ones 0.63.
MIN_CONTENT_KEPT = 0.5
# Distance of images of training captions to their own training images: memorising ones reach 0.55, others 0.60.
MIN_REPRODUCTION = 0.57
# Variety over seeds, over that without the LoRA: a character is drawn less freely than what the base makes up.
MIN_KEPT_VARIETY = 0.4
