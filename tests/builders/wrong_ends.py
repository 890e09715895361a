"""Readers of a broker that is wrong about the ends of its logs."""

from luthier_common.kit.stream import Part, Reader


class EarlyEnds(Reader):
    """It names an end before what it holds, as an embedded one may after it was killed."""

    def log_end(self, part: Part) -> tuple[int, int] | None:
        named = super().log_end(part)
        return named and (0, named[1])


class CutEnds(Reader):
    """Its logs are cut after the first look at each."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._seen: set[Part] = set()

    def log_end(self, part: Part) -> tuple[int, int] | None:
        named = super().log_end(part)
        if named is None or named[0] == 0:
            return named
        is_cut = part in self._seen
        self._seen.add(part)
        return (0, named[1]) if is_cut else named
