"""The table of limits: its defaults, and what may be set."""

from __future__ import annotations

import pytest

from degu.limits import DEFAULT_LIMITS, Limits, build_limits

KIB = 1024
MIB = 1024 * KIB


def test_the_defaults_are_the_documented_ones():
    assert Limits()._asdict() == {
        'max_connections': 256,
        'max_connections_per_address': 64,
        'max_handshakes': 32,
        'handshake_timeout_s': 5.0,
        'preamble_timeout_s': 10.0,
        'idle_timeout_s': 30.0,
        'min_body_rate': 1 * KIB,
        'body_window_s': 30.0,
        'chunk_gap_timeout_s': None,
        'max_preamble': 32 * KIB,
        'max_line': 8 * KIB,
        'max_headers': 32,
        'max_chunk': 16 * MIB,
        'max_chunk_line': 512,
        'max_requests': None,
    }


def test_nothing_given_builds_the_defaults():
    assert build_limits() == DEFAULT_LIMITS == Limits()


@pytest.mark.parametrize('name', Limits._fields)
def test_each_limit_can_be_set_alone(name):
    value = 10_000
    assert build_limits(**{name: value}) == DEFAULT_LIMITS._replace(**{name: value})


def test_a_line_is_never_allowed_to_be_longer_than_its_preamble():
    limits = build_limits(max_preamble=1000)
    assert (limits.max_preamble, limits.max_line) == (1000, 1000)
    assert build_limits(max_preamble=1000, max_line=500).max_line == 500


def test_a_time_may_be_a_fraction_of_a_second():
    assert build_limits(idle_timeout_s=0.25).idle_timeout_s == 0.25


@pytest.mark.parametrize('name', ['max_requests', 'chunk_gap_timeout_s'])
def test_none_is_no_limit_where_that_is_the_default(name):
    assert getattr(build_limits(**{name: None}), name) is None


@pytest.mark.parametrize(
    'name', sorted({*Limits._fields} - {'max_requests', 'chunk_gap_timeout_s'})
)
def test_none_is_refused_elsewhere(name):
    with pytest.raises(TypeError, match=f'{name} must be a'):
        build_limits(**{name: None})


@pytest.mark.parametrize('name', Limits._fields)
@pytest.mark.parametrize('value', [0, -1])
def test_a_limit_is_above_zero(name, value):
    with pytest.raises(ValueError, match=f'{name} must be above zero'):
        build_limits(**{name: value})


@pytest.mark.parametrize('value', [float('inf'), float('nan'), -0.5, 1e9])
def test_a_time_can_be_waited(value):
    with pytest.raises(ValueError, match='idle_timeout_s must be above zero and at most'):
        build_limits(idle_timeout_s=value)


@pytest.mark.parametrize('name', Limits._fields)
@pytest.mark.parametrize('value', ['7', True, [7]])
def test_a_limit_is_a_number(name, value):
    with pytest.raises(TypeError, match=f'{name} must be a'):
        build_limits(**{name: value})


@pytest.mark.parametrize('name', [n for n in Limits._fields if not n.endswith('_s')])
def test_a_count_or_a_size_is_whole(name):
    with pytest.raises(TypeError, match=f'{name} must be an int, not 1.5'):
        build_limits(**{name: 1.5})


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(TypeError, match=r"'max_conections' is not an option; .*max_connections"):
        build_limits(max_conections=5)
