"""The roles that the paper's averages sort tokens into (paper figure 2)."""

FIRST_SUBJECT = "first subject token"
MIDDLE_SUBJECT = "middle subject tokens"
LAST_SUBJECT = "last subject token"
FIRST_SUBSEQUENT = "first subsequent token"
FURTHER = "further tokens"
LAST = "last token"
BEFORE = "before the subject"

ROLES = (FIRST_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT, FIRST_SUBSEQUENT, FURTHER, LAST)
"""In the order of the paper's figure, without the positions before the subject, where nothing can be restored."""


def token_roles(length: int, subject: range) -> list[str]:
    """The role of each position of a prompt. A subject of one token is its last; the prompt's end is the last token
    unless the subject ends there.
    """
    roles = [BEFORE] * subject.start + [MIDDLE_SUBJECT] * len(subject) + [FURTHER] * (length - subject.stop)
    roles[subject.start] = FIRST_SUBJECT
    roles[subject.stop - 1] = LAST_SUBJECT
    if subject.stop < length:
        roles[subject.stop] = FIRST_SUBSEQUENT
        roles[length - 1] = LAST
    return roles
