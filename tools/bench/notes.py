"""What was tried for the lines that miss their goals; printed under the table. Figures: CPython 3.11, Linux 6.18."""

from __future__ import annotations

from typing import Final

__all__ = ["NOTES"]

NOTES: Final = {
    "P1": "a redeemed socket, which others may hold, makes two system calls where a blocking socket makes one. Bare "
    "loops, eight pairs of new processes each: a frame around poll {socket, waker} and recv(), a frame around send(): "
    "0.80 to 0.83 TCP, 0.80 to 0.86 UNIX, which is the ceiling without C; an epoll set instead of poll 0.04 less, "
    "edge-triggered 0.02 more (but a FIN behind the last data makes no second edge). An opened one, which nobody else "
    "can hold, waits in recv() itself, for 5 ms at most: a bare loop makes 0.96 and 0.92, ours 0.08 less for its "
    "guards. It is memory rather than instructions: on one core two processes evict each other's, and how one lies "
    "there moves its figure by a fifth while it lives. Tried: a row per receive for pending_operations() (-0.06), its "
    "clock alone (-0.02), storing what was taken in a dict (-0.06), poll and recv chained in C iterators (-0.04), "
    "select() (-0.04).",
    "P2": "as P1. The C code's poll and recv are one call, and its poll watches one file; what we gain is that it "
    "polls before each send as well.",
    "P3": "what is left is one Python frame, the look at a flag that a fork wipes, and MSG_DONTWAIT. Tried: the "
    "prepared call of a conversation instead (0.76: its guards cost more than the second argument).",
    "P4": "on a Unix socket a piece takes 8 us, and ours 11 to 12: the sender finds the buffer full at each fourth or "
    "fifth, and waits in Python (4 us); and as it computes more, the receiver preempts it more often and finds less "
    "each time (0.5 waits per piece where a plain one has 0.14). A redeemed receiver also polls before each. Tried: "
    "to wait at once after a send that was cut short, as the next try is an exception (1 us): 0.66 to 0.67 in two "
    "runs each, which is less than runs differ by.",
    "P5": "the peers' own equivalents of recv and sendall on both ends.",
    "P6": "the closer notes where it was called from, swaps the descriptor for a closed one and leaves the wait set: "
    "12 us of Python and two system calls, where shutdown() is one. Waking before leaving the set, and moving what "
    "can wait behind the drain, is done.",
    "P7": "an accept makes a descriptor and a table entry for its client, and each client wakes one thread per "
    "process (EPOLLEXCLUSIVE would lose wake-ups for other processes). A waker for each try is gone: the first who "
    "waits makes the only one. Wasted wake-ups have two states: none, where the client is taken before another "
    "process looks (its epoll_wait sleeps on by itself), or a bit more than one; runs of one and the same code differ "
    "by a third.",
    "P8": "each datagram wakes a thread through the wait set, which then tries: the chain inside the set. On two "
    "cores the figure is where the scheduler has put client and server (a plain round trip takes 8 us or 55). Tried: "
    "a set that is armed for one event at a time and armed again by whoever leaves (0.51 instead of 0.49 with ten "
    "threads; a waiter interrupted twice would leave the others asleep).",
    "P9": "out of reach with a registry that counts before it hands over. Three processes that do nothing but the "
    "messages of it (issue and its answer, ticket, claim and its answer with the descriptor, acknowledgement; poll, "
    "recvmsg with credentials, no count, no object made) take 53 us, 2.9 to 3.7 of send_fds: the floor leaves a few "
    "frames. Ours are 36 at the giver, 101 at the taker, some 115 at the registry, and 500 us: far more than they "
    "cost in a loop, perhaps since each switch between three processes on one core finds cold caches. Tried: to wait "
    "for no acknowledgement; 34 frames less at the giver and the taker and some ten at the registry, which gained "
    "less than two runs differ (31.5 and 35.4, before 36.7 and 33.5). Not tried: to issue without waiting (one answer "
    "less; what share() raises for a dead target or too many tickets would have to be known here), to push the "
    "descriptor into the target's channel (a target that never claims would have it, and a revoke could not take it "
    "back).",
    "P10": "as P9: the bare messages, the close's included, take 70 us, pickling about 200: the floor leaves 30. A "
    "close adds begin-close, which is waited for (exactly one closer is LAST), and end-close, posted.",
    "P11": "was 12: objects per message, a selectors pass per request, waiters and locks for a caller that is alone. "
    "A loop of poll and recv against one of epoll, recvmsg with credentials and send, with no work at all, is 1.4. "
    "Not tried: recv with a timeout of the kernel's instead of poll (0.1; a signal restarts it), fewer frames.",
    "P12": "the same; 32 callers share a pass of the loop.",
    "P15": "a close where no other frame has the kernel socket is one plain close(), the first who waits makes the "
    "waker, places are kept as code and instruction, O_NONBLOCK comes with socket(2), the table is a dictionary of "
    "weak references: 15 became 4.2. What is left is 40 frames of Python for two objects, and the question for unread "
    "bytes (0.7 us of 13, where a plain socket takes 3).",
    "P16": "names import their room when they are asked for.",
}
