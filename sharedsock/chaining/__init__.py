"""PROVIDERS UNDER THE PYTHON FACE: a chain of layers beneath SharedSocket, in every process that shares the socket.

using.py       use_provider, which begins and ends it
face.py        SharedSocket over a chain
requests.py    overlapped calls over one
bottom.py      SharedSocket as the provider beneath a chain
stacks.py      a chain's providers in this process
spelling.py    how a chain travels
"""

from sharedsock.chaining.stacks import chain_of
from sharedsock.chaining.using import use_provider

__all__ = ["chain_of", "use_provider"]
