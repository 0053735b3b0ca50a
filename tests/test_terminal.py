"""What is shown goes to standard error; where that is no terminal, a bar is one line."""

import re

import pytest

from kerasllm.terminal import progress, say, show_table


def test_a_bar_is_one_line_where_there_is_no_terminal(capsys):
    with progress("read", total=3000, unit="sentences") as bar:
        for _ in range(3):
            bar.advance(1000)
            bar.update(loss="2.31", tokens_per_second="12,000")
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"read: 3,000 sentences in 0\.0 s  loss 2\.31  tokens per second 12,000\n", output.err)


def test_where_there_is_no_terminal_a_long_bar_says_now_and_then_how_far_it_is(capsys, monkeypatch):
    clock = iter(range(0, 10000, 10))
    monkeypatch.setattr("kerasllm.terminal.time.monotonic", lambda: next(clock))
    with progress("train", total=100, unit="steps") as bar:
        for _ in range(10):
            bar.update(loss="2.31")
            bar.advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert 1 < len(lines) < 10
    assert re.fullmatch(r"train: \d+/100 steps .*/s, \d:\d\d:\d\d left  loss 2\.31", lines[0])


def test_bars_inside_bars(capsys):
    with progress("outer", total=2, unit="steps") as outer:
        with progress("inner", unit="texts") as inner:
            inner.advance(5)
        outer.advance(2)
    assert re.fullmatch(r"inner: 5 texts in .*\nouter: 2 steps in .*\n", capsys.readouterr().err)


def test_a_failed_bar_says_nothing_of_success(capsys):
    with pytest.raises(ValueError, match="broken"), progress("read"):
        raise ValueError("broken")
    assert capsys.readouterr().err == ""


def test_text_is_shown_as_it_is(capsys):
    line = "[bold] :smile: {x} " + "long " * 40
    say(line)
    show_table("[red]title", ("", ""), [("[a]", 1)])
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[0] == line
    assert "[a]" in output.err
    assert "[red]title" in output.err
