"""Properties that are computed once."""

from rwkv_cli.lazy import lazy_property


class Counted:
    times = 0

    @lazy_property
    def total(self) -> int:
        """A sum."""
        self.times += 1
        return 40 + self.times


def test_the_first_result_is_kept_by_each_instance() -> None:
    one, other = Counted(), Counted()
    assert [one.total, one.total, other.total] == [41, 41, 41]
    assert (one.times, other.times) == (1, 1)


def test_a_class_tells_what_it_is() -> None:
    assert Counted.total.__doc__ == "A sum."
