"""What the measured numbers of a row come to."""

import statistics


def medians_of(found):
    """Contender's name → median, of those that have numbers."""
    return {
        name: statistics.median(numbers)
        for name, numbers in found.items()
        if isinstance(numbers, list)
    }


def best_of(medians):
    """The name of the best peer, or None."""
    return min((name for name in medians if name != "ours"), key=medians.get, default=None)


def ratios_of(row, medians):
    """(against whom, how many times less ours is, what is to be reached or None)."""
    best = best_of(medians)
    if "ours" not in medians or best is None:
        return []
    found = []
    if "Pebble" in medians:
        found.append(("Pebble", medians["Pebble"] / medians["ours"], row.against_pebble))
    found.append(("the best", medians[best] / medians["ours"], row.against_best))
    return found
