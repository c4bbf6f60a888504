"""What a look means that saw only a part: what was found stands, and finding nothing proves nothing."""

from collections.abc import Sequence
from dataclasses import replace

from monitor.domain import Observed
from monitor.errors import CannotLook


def or_blind(observed: Observed, unseen: Sequence[str]) -> Observed:
    """``observed``, where each finding says beside its facts what was not seen: ``unseen`` names each with its cure.

    Raises ``CannotLook`` when something was not seen and nothing was found.
    """
    if not unseen:
        return observed
    said = "; ".join(unseen)
    if not observed.findings:
        raise CannotLook(said)
    return replace(observed, findings=tuple(replace(one, facts=(*one.facts, ("not seen", said))) for one in observed.findings))
