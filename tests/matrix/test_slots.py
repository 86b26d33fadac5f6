"""Who reads slots of the KV cache that hold something else than they should."""

from __future__ import annotations

from tools.differential.observing import Forward
from tools.differential.slots import contested, older, rewritten, spoilt, went_to_another

SIZE = 4


def forward(*rows: tuple[tuple[int, int, int, int], list[int]], astray=()) -> Forward:
    tables = [table for _, table in rows]
    return Forward(0, [row for row, _ in rows], tables, list(astray))


def test_nothing_is_spoilt_where_all_goes_where_it_should():
    forwards = [
        forward(((0, 0, 0, 5), [1, 2]), ((1, 0, 0, 3), [3])),
        forward(((0, 0, 5, 1), [1, 2]), ((1, 0, 3, 1), [3])),
    ]
    assert spoilt(forwards, SIZE) == {}


def test_what_went_astray_is_missing_in_its_request():
    forwards = [
        forward(((0, 0, 0, 3), [1, -1]), ((1, 0, 0, 3), [3, -1])),
        forward(((0, 0, 3, 2), [1, 2]), astray=[(0, 3, 3)]),
        forward(((0, 0, 4, 2), [1, 2])),
    ]
    assert spoilt(forwards, SIZE) == {(0, 0): 1}


def test_what_is_written_again_is_right_again():
    """A draft that is not accepted is overwritten, and what was computed from it is not used."""
    forwards = [
        forward(((0, 0, 0, 2), [1, -1])),
        forward(((0, 0, 2, 3), [1, 2]), astray=[(0, 3, 7)]),
    ]
    again = forward(((0, 1, 0, 4), [1, -1]))
    assert spoilt([*forwards, again], SIZE) == {(0, 0): 1}
    other = forward(((2, 0, 0, 4), [7, -1]))
    assert spoilt([*forwards, other], SIZE) == {(0, 0): 1}


def test_who_owns_the_slot_where_it_went_reads_it():
    forwards = [
        forward(((0, 0, 0, 3), [1, -1]), ((1, 0, 0, 4), [3, -1])),
        forward(((0, 0, 3, 2), [1, 2]), astray=[(0, 3, 3)]),
        forward(((1, 0, 4, 1), [3, 5])),
        forward(((2, 0, 4, 1), [3, 6])),  # a cached prefix
        forward(((3, 0, 0, 1), [4])),
    ]
    assert spoilt(forwards, SIZE) == {(0, 0): 1, (1, 0): 2, (2, 0): 3}


def test_two_requests_contest_a_slot_where_what_goes_astray_meets_what_does_not():
    shared = forward(((0, 0, 0, 4), [1]), ((1, 0, 0, 4), [1]))  # one prompt, computed twice
    astray = forward(((0, 0, 3, 2), [1, 2]), ((1, 0, 1, 2), [3]), astray=[(0, 3, 5)])
    meets = forward(((0, 0, 3, 2), [1, 2]), ((1, 0, 3, 1), [3]), astray=[(0, 3, 3)])
    both = forward(((0, 0, 3, 1), [1]), ((1, 0, 3, 1), [3]), astray=[(0, 3, 5), (1, 3, 5)])
    assert contested([shared, astray], SIZE) is None
    assert contested([shared, astray, meets, both], SIZE) == 2
    assert contested([both], SIZE) == 0


def test_what_is_computed_from_it_is_spoilt_too():
    forwards = [
        forward(((0, 0, 0, 3), [1, -1])),
        forward(((0, 0, 3, 2), [1, 2]), astray=[(0, 3, 9)]),
        forward(((0, 0, 5, 3), [1, 2])),
        forward(((1, 0, 8, 1), [8, 2, 5])),  # shares the second block, not the first
    ]
    assert spoilt(forwards, SIZE)[1, 0] == 3


def test_what_is_shared_may_be_of_other_weights():
    first = forward(((0, 0, 0, 6), [1, 2]))
    again = forward(((0, 0, 6, 1), [1, 2]), ((1, 0, 0, 6), [1, 3]))
    skips = forward(((0, 0, 6, 1), [1, 2]), ((1, 0, 4, 2), [1, 3]))
    for second, shared, cached in ((again, {(0, 0)}, set()), (skips, set(), {(1, 0)})):
        assert rewritten([first, second], SIZE) == older([first, second], SIZE) == set()
        second.version = 1
        assert rewritten([first, second], SIZE) == shared
        assert older([first, second], SIZE) == cached


def test_the_block_has_to_be_of_a_request_that_is_no_longer_there():
    before = forward(((0, 0, 0, 3), [1, -1]), ((1, 0, 0, 3), [3, -1]))
    evicted = forward(((0, 0, 3, 2), [1, 2]), astray=[(0, 3, 3)])
    comes_back = forward(((0, 0, 3, 2), [1, 2]), ((1, 1, 0, 4), [4, -1]), astray=[(0, 3, 3)])
    stays = forward(((0, 0, 3, 2), [1, 2]), ((1, 0, 3, 1), [3, -1]), astray=[(0, 3, 3)])
    nobody = forward(((0, 0, 3, 2), [1, 2]), astray=[(0, 3, 5)])
    found = [went_to_another([before, each], 1) for each in (evicted, comes_back, stays, nobody)]
    assert found == [True, True, False, False]
