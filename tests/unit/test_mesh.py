"""Connections between ranks: who belongs to the run, who does not, and who fell silent."""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from krakenlm.errors import KrakenError
from krakenlm.ranks import life, mesh, network
from krakenlm.ranks.activity import ACTIVITY_BYTES, Activity
from krakenlm.ranks.failures import check_timeout
from krakenlm.ranks.life import Life, Peer

SECONDS = 20.0


class Meeting:
    """What a process group does for ranks that are threads; strangers read along."""

    def __init__(self, size, before=lambda cards: None):
        self._cards = [b""] * size
        self._barrier = threading.Barrier(size, lambda: before(self._cards))

    def gather(self, rank):
        def gather(card):
            self._cards[rank] = card
            self._barrier.wait(SECONDS)
            return list(self._cards)

        return gather


def connect_all(size, address, monkeypatch, before=lambda cards: None, seconds=SECONDS):
    monkeypatch.setattr(mesh, "own_address", lambda: address)
    meeting = Meeting(size, before)
    with ThreadPoolExecutor(size) as pool:
        ranks = [
            pool.submit(mesh.connected, rank, size, meeting.gather(rank), seconds)
            for rank in range(size)
        ]
    return [rank.result() for rank in ranks]


def close(ranks):
    for connections in ranks:
        for connection in connections:
            if connection is not None:
                connection.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_every_rank_reaches_every_other(address, monkeypatch):
    if ":" in address and not network._ipv6_of("lo"):
        pytest.skip("this machine has no IPv6")
    ranks = connect_all(3, address, monkeypatch)
    for rank, connections in enumerate(ranks):
        assert [connection is None for connection in connections] == [n == rank for n in range(3)]
        for other, connection in enumerate(connections):
            if connection is not None:
                connection.sendall(bytes([rank, other]))
    for rank, connections in enumerate(ranks):
        for other, connection in enumerate(connections):
            if connection is not None:
                assert connection.recv(2) == bytes([other, rank])
    close(ranks)


SECRET, RANK = slice(66, 82), mesh._RANK.pack


@pytest.mark.parametrize(
    "says",
    [
        lambda secret: b"",
        lambda secret: b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
        lambda secret: secret[:7],
        lambda secret: secret + b"\0",
        lambda secret: bytes(16) + RANK(1),
        lambda secret: secret + RANK(0),
        lambda secret: secret + RANK(-1),
        lambda secret: secret + RANK(7),
    ],
    ids=["nothing", "garbage", "half a secret", "half a greeting", "another secret",
         "the rank itself", "no rank", "an unknown rank"],
)  # fmt: skip
def test_a_stranger_who_connects_first_neither_joins_nor_delays(says, monkeypatch, figure, request):
    strangers = []

    def before(cards):
        card = mesh._CARD.unpack(cards[0])
        place = (card[0].rstrip(b"\0").decode(), card[1])
        stranger = socket.create_connection(place, SECONDS)
        stranger.sendall(says(cards[0][SECRET]))
        strangers.append(stranger)
        gone = socket.create_connection(place, SECONDS)
        gone.close()

    begun = time.monotonic()
    ranks = connect_all(2, "127.0.0.1", monkeypatch, before)
    seconds = time.monotonic() - begun
    assert seconds < 5  # nearly all of it is a margin for busy machines
    who = request.node.callspec.id
    figure(
        f"a stranger connects first and sends {who}", f"connected in {seconds:.2f} s", "1 s more"
    )
    ranks[0][1].sendall(b"x")
    assert ranks[1][0].recv(1) == b"x"
    (stranger,) = strangers
    stranger.settimeout(SECONDS)
    with contextlib.suppress(ConnectionResetError):
        assert stranger.recv(1) == b""  # shown out
    stranger.close()
    close(ranks)


def test_a_rank_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(mesh, "own_address", lambda: "127.0.0.1")
    with pytest.raises(TimeoutError, match="rank 1, 2 did not connect in 0 s"):
        mesh.connected(0, 3, lambda card: [card] * 3, 0.05)


# --- signs of life -------------------------------------------------------------------------------


@pytest.fixture
def beats(monkeypatch):
    monkeypatch.setattr(life, "BEAT_SECONDS", 0.05)


class Listening:
    """Rank 0's end of a connection, and what it hears of rank 1's."""

    def __init__(self, timeout=0.5):
        ours, self.theirs = socket.socketpair()
        self.activity = Activity()
        self.losses = []
        self.lost = threading.Event()
        self.life = Life([Peer(1, ours, 0)], self.activity, timeout, self._hear)

    def _hear(self, loss):
        self.losses.append(loss)
        self.lost.set()


def said(*texts):
    return b"".join(bytes([len(text)]) + text for text in texts)


@pytest.mark.usefixtures("beats")
def test_who_falls_silent_is_lost_with_what_it_said_last():
    listening = Listening()
    listening.theirs.sendall(said(b"loading", b"decoding"))
    assert listening.lost.wait(SECONDS)
    (loss,) = listening.losses
    assert loss.silent
    assert loss.text.startswith("rank 1 has given no sign of life for 0 s while decoding: it was ")
    listening.life.end(goodbye=False)


@pytest.mark.usefixtures("beats")
def test_who_gives_signs_byte_by_byte_lives_and_hears_ours():
    listening = Listening(timeout=0.4)
    listening.activity("weighing")
    for byte in 6 * said(b"slow"):
        listening.theirs.sendall(bytes([byte]))
        time.sleep(0.05)
    assert not listening.lost.is_set()
    assert said(b"weighing") in listening.theirs.recv(4096)
    listening.life.end(goodbye=True)
    while more := listening.theirs.recv(4096):
        last = more
    assert last[-1] == 255


def test_what_it_does_is_told_when_it_changes_not_with_the_next_beat():
    listening = Listening()
    first = listening.theirs.recv(4096)
    for doing in ("decoding", "decoding", "saving"):
        listening.activity(doing)
    assert first + listening.theirs.recv(4096) == said(b"", b"decoding", b"saving")
    listening.life.end(goodbye=False)
    listening.activity("leaving")
    assert listening.theirs.recv(4096) == b""


@pytest.mark.usefixtures("beats")
def test_a_broken_connection_is_a_loss_at_once_and_a_goodbye_is_none():
    broken, ended = Listening(timeout=60), Listening(timeout=0.2)
    broken.theirs.sendall(said(b"saving"))
    broken.theirs.close()
    ended.theirs.sendall(said(b"saving") + b"\xff")
    ended.theirs.close()
    assert broken.lost.wait(SECONDS)
    assert broken.losses == [life.Loss("rank 1 is gone while saving", silent=False)]
    assert not ended.lost.wait(0.6)
    for listening in (broken, ended):
        listening.life.end(goodbye=True)


def test_a_broken_sum_is_followed_to_who_is_gone_without_waiting_for_the_next_beat():
    broken, later, ended, silent = (Listening(timeout=60) for _ in range(4))
    broken.theirs.sendall(said(b"saving"))
    broken.theirs.close()
    threading.Timer(0.05, later.theirs.close).start()
    ended.theirs.sendall(b"\xff")
    ended.theirs.close()
    assert broken.life.gone(0.0001) == life.Loss("rank 1 is gone while saving", silent=False)
    assert later.life.gone(SECONDS) == life.Loss("rank 1 is gone", silent=False)
    assert ended.life.gone(SECONDS) is None
    assert silent.life.gone(0.05) is None
    for listening in (broken, later, ended, silent):
        assert listening.losses == []
        listening.life.end(goodbye=True)


def test_an_activity_is_cut_to_its_place():
    board = bytearray(2 * ACTIVITY_BYTES)
    first, second = (Activity(board, n * ACTIVITY_BYTES) for n in range(2))
    assert first.now == ""
    first("ä" * ACTIVITY_BYTES)
    second("decoding")
    first("loading")
    assert (first.now, second.now) == ("loading", "decoding")
    assert len(board) == 2 * ACTIVITY_BYTES


@pytest.mark.parametrize("seconds", [-1, 0.5, float("nan")])
def test_a_limit_that_no_rank_could_keep_is_refused(seconds):
    with pytest.raises(KrakenError, match=r"--timeout .*: give 2 or more, or 0"):
        check_timeout(seconds)
    check_timeout(0)
    check_timeout(2)
