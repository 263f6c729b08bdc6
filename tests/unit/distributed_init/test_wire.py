"""Messages between ranks: cut at line ends, and nothing strange gets in."""

import pytest

from megatron.pretrain.distributed.wire import MAX_LINE_BYTES, LineBuffer, WireError, encode, shorten


def test_messages_are_cut_at_line_ends_however_the_bytes_arrive() -> None:
    stream = encode("beat") + encode("failed", detail="naïve\nline") + encode("goodbye")
    buffer, found = LineBuffer(), []
    for start in range(0, len(stream), 7):
        found += buffer.feed(stream[start : start + 7])
    assert [message["kind"] for message in found] == ["beat", "failed", "goodbye"]
    assert found[1]["detail"] == "naïve\nline"


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\n", b"[1]\n", b"{}\n", b'{"kind": 3}\n', b"\xff\xfe\n", b"x" * (MAX_LINE_BYTES + 1)]
)
def test_what_is_not_a_message_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        LineBuffer().feed(data)


def test_shorten_keeps_messages_below_the_limit() -> None:
    assert shorten("abc") == "abc"
    assert len(encode("failed", detail=shorten("é" * 10**6))) < MAX_LINE_BYTES
