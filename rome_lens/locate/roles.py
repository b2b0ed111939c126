"""The token roles that effects are averaged over (paper figure 2)."""

FIRST_SUBJECT = "first subject token"
MIDDLE_SUBJECT = "middle subject tokens"
LAST_SUBJECT = "last subject token"
FIRST_SUBSEQUENT = "first subsequent token"
FURTHER = "further tokens"
LAST = "last token"
BEFORE = "before the subject"

ROLES = (FIRST_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT, FIRST_SUBSEQUENT, FURTHER, LAST)
"""In the order of the paper's figure, without the positions before the subject, where restoring changes nothing."""


def token_roles(length: int, subject: range) -> list[str]:
    """The role of each position of a prompt.

    The only token of a subject counts as its last. The prompt's last token has that role unless the subject ends there.
    """
    roles = [BEFORE] * subject.start + [MIDDLE_SUBJECT] * len(subject) + [FURTHER] * (length - subject.stop)
    roles[subject.start] = FIRST_SUBJECT
    roles[subject.stop - 1] = LAST_SUBJECT
    if subject.stop < length:
        roles[subject.stop] = FIRST_SUBSEQUENT
        roles[length - 1] = LAST
    return roles
