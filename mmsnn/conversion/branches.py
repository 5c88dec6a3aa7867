"""Checks in a network's ``forward``: branches that only raise, which a trace may take for passed."""
import dis
from bisect import bisect_left
from types import FrameType

STRAIGHT = 60  # instructions that the message of an error may take


def passing(frame: FrameType | None) -> bool | None:
    """The truth value of what a frame is deciding upon with which it goes on, where the other one only raises.

    So it is with ``assert x.ndim == 4`` and with ``if x.shape[1] != 3: raise ValueError(...)``: an input for which the
    ANN raises is none that it was trained on.

    Returns:
        None where the frame decides nothing, or neither branch, or both, raise at once.
    """
    if frame is None:
        return None
    code = [each for each in dis.get_instructions(frame.f_code) if each.opname != 'CACHE']
    here = bisect_left(code, frame.f_lasti, key=lambda each: each.offset)
    while here < len(code) and code[here].opname in ('TO_BOOL', 'NOT_TAKEN'):  # from Python 3.13 on
        here += 1
    if here >= len(code) or 'POP_JUMP' not in code[here].opname or code[here].opname[-4:] not in ('TRUE', 'ALSE'):
        return None
    jumps_if = code[here].opname.endswith('TRUE')
    target = next((index for index, each in enumerate(code) if each.offset == code[here].argval), None)
    if target is None:
        return None
    raised, going_on = _raises(code, target), _raises(code, here + 1)
    if raised == going_on:
        return None
    return jumps_if != raised


def _raises(code: list[dis.Instruction], start: int) -> bool:
    """Whether what begins at an instruction raises without deciding anything before."""
    for each in code[start:start + STRAIGHT]:
        if each.opname in ('RAISE_VARARGS', 'RERAISE'):
            return each.opname == 'RAISE_VARARGS'
        if 'JUMP' in each.opname or each.opname.startswith(('RETURN', 'YIELD', 'FOR_ITER')):
            return False
    return False
