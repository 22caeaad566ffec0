import pytest

from fwdgrad.words import check_word


def test_a_word_among_the_choices_passes() -> None:
    check_word("engine", "func", {"func": 1, "dual": 2})


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("fucn", r"^engine must be one of \['func', 'dual'\], got 'fucn'. Did you mean 'func'\?$"),
        ("zzz", r"^engine must be one of \['func', 'dual'\], got 'zzz'.$"),
        ("", r"^engine must be one of \['func', 'dual'\], got ''.$"),
    ],
)
def test_another_word_is_answered_with_the_choices_and_the_nearest(word: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_word("engine", word, ["func", "dual"])
