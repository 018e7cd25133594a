"""A list of checks, each with the promise that it shows."""

CHECKS = []  # (phase, promise, function)


def shows(phase, promise):
    """Adds a function of the two-node cluster to the checks of a phase."""
    def add(function):
        CHECKS.append((phase, promise, function))
        return function
    return add


def same(seen, wanted, what=""):
    """An error that says what was there instead."""
    assert seen == wanted, f"{what or 'got'}: wanted {wanted!r}, got {seen!r}"
