"""What a process does that dies within its answer; it imports this module, and so nothing large."""

import os
import struct


def answers_by_half(pipe, encoding):
    pipe.recv()
    os.write(pipe.fileno(), struct.pack("!i", 1_000_000) + bytes(1000))
