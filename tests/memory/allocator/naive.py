"""A second caching allocator, slow and plain: segments are lists of pieces, searches look at all.

It shares no code with the planner's and knows no expandable segments.
"""

from dataclasses import dataclass, field

KB, MB = 1024, 1024 * 1024


@dataclass(eq=False)
class Piece:
    size: int
    owner: object = None
    used_by: set = field(default_factory=set)
    freed: bool = True


@dataclass(eq=False)
class Segment:
    number: int
    stream: int
    small: bool
    pieces: list

    @property
    def size(self):
        return sum(piece.size for piece in self.pieces)


class Full(Exception):  # noqa: N818 - what it is
    pass


class Naive:
    def __init__(self, capacity=None, max_split=None):
        self.segments, self.capacity, self.max_split = [], capacity, max_split or float("inf")
        self.made = 0

    @property
    def reserved(self):
        return sum(segment.size for segment in self.segments)

    @property
    def allocated(self):
        return sum(piece.size for _, piece in self.pieces() if piece.owner is not None)

    @property
    def active(self):
        return sum(piece.size for _, piece in self.pieces() if not piece.freed)

    def pieces(self):
        return [(segment, piece) for segment in self.segments for piece in segment.pieces]

    def allocate(self, owner, wanted, stream=0):
        self.catch_up()
        size = max(512, (wanted + 511) // 512 * 512)
        segment, piece = self.find(size, stream) or self.fetch(size, stream)
        rest = piece.size - size
        if (rest >= 512) if segment.small else (size < self.max_split and rest > MB):
            place = segment.pieces.index(piece)
            segment.pieces.insert(place + 1, Piece(rest))
            piece.size = size
        piece.owner, piece.freed = owner, False

    def find(self, size, stream):
        found = [
            (piece.size, segment.number, segment.pieces.index(piece), segment, piece)
            for segment, piece in self.pieces()
            if piece.freed
            and segment.stream == stream
            and segment.small == (size <= MB)
            and piece.size >= size
        ]
        if not found:
            return None
        best = min(found, key=lambda each: each[:3])
        if size < self.max_split <= best[0]:
            return None
        if size >= self.max_split and best[0] >= size + 20 * MB:
            return None
        return best[3:]

    def fetch(self, size, stream):
        if size <= MB:
            length = 2 * MB
        elif size < 10 * MB:
            length = 20 * MB
        else:
            length = (size + 2 * MB - 1) // (2 * MB) * (2 * MB)
        if not self.has_room(length) and self.give_oversize(size, stream):
            pass
        if not self.has_room(length):
            self.empty()
        if not self.has_room(length):
            raise Full
        self.made += 1
        segment = Segment(self.made, stream, size <= MB, [Piece(length)])
        self.segments.append(segment)
        return segment, segment.pieces[0]

    def has_room(self, length):
        return self.capacity is None or self.reserved + length <= self.capacity

    def give_oversize(self, size, stream):
        if self.max_split == float("inf"):
            return False
        wanted = max(size, self.max_split)
        whole = [
            segment
            for segment in self.segments
            if segment.stream == stream
            and segment.small == (size <= MB)
            and len(segment.pieces) == 1
            and segment.pieces[0].freed
        ]
        enough = [segment for segment in whole if segment.size >= wanted]
        if enough:
            self.segments.remove(min(enough, key=lambda each: (each.size, each.number)))
            return True
        given = 0
        for segment in sorted(whole, key=lambda each: (-each.size, -each.number)):
            if given >= wanted or segment.size < self.max_split:
                break
            given += segment.size
            self.segments.remove(segment)
        return given >= wanted

    def free(self, owner):
        for _, piece in self.pieces():
            if piece.owner == owner:
                piece.owner = None
                if not piece.used_by:
                    piece.freed = True
        self.join()

    def record(self, owner, stream):
        for segment, piece in self.pieces():
            if piece.owner == owner and segment.stream != stream:
                piece.used_by.add(stream)

    def catch_up(self):
        for _, piece in self.pieces():
            if piece.owner is None:
                piece.freed = True
                piece.used_by = set()
        self.join()

    def join(self):
        for segment in self.segments:
            joined = []
            for piece in segment.pieces:
                if joined and joined[-1].freed and piece.freed:
                    joined[-1].size += piece.size
                else:
                    joined.append(piece)
            segment.pieces = joined

    def empty(self):
        self.catch_up()
        self.segments = [
            segment
            for segment in self.segments
            if len(segment.pieces) > 1 or not segment.pieces[0].freed
        ]
