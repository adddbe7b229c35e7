"""WSAPROTOCOL_INFO: what a catalogue entry says of itself, and the special one that stands for a socket's duplicate.

The special one is an entry with the provider's reserved field filled: for the base provider a ticket (a right to one
reference, for one process) and the flags the socket was made with, under a checksum that turns away what was damaged
on its way before anybody is asked. A value; it travels pickled, or as bytes by any IPC.

Source: WSAPROTOCOL_INFOW; LPWSPDUPLICATESOCKET; WSPDATA.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, replace
from typing import Final, NamedTuple
from uuid import UUID

from sharedsock.model.winsock import MAX_PROTOCOL_CHAIN, WSAEINVAL, XP1_IFS_HANDLES
from sharedsock.spi.errors import WSAError

__all__ = ["WSAPROTOCOL_INFO", "WSPDATA", "Duplicate", "seal", "unseal"]

_FIXED: Final = struct.Struct(f"<4sIII16s{MAX_PROTOCOL_CHAIN + 1}IiiiHH")
_MAGIC: Final = b"WSPI"
_RESERVED: Final = struct.Struct("<16sI")


class WSPDATA(NamedTuple):
    """What WSPStartup reports: the version to be used, the highest there is, and what this is."""

    wVersion: int
    wHighVersion: int
    szDescription: str


@dataclass(frozen=True, slots=True)
class WSAPROTOCOL_INFO:
    """One entry of the catalogue.

    Attributes:
        ProtocolChain: catalogue ids from the top to the base; one id alone is a base protocol.
        dwProviderReserved: the provider's own; not empty in what WSPDuplicateSocket returns.
    """

    dwServiceFlags1: int
    ProviderId: UUID
    dwCatalogEntryId: int
    ProtocolChain: tuple[int, ...]
    iAddressFamily: int
    iSocketType: int
    iProtocol: int
    szProtocol: str
    dwProviderReserved: bytes = b""

    @property
    def is_ifs(self) -> bool:
        """Whether handles of this entry are the operating system's (XP1_IFS_HANDLES)."""
        return bool(self.dwServiceFlags1 & XP1_IFS_HANDLES)

    def __bytes__(self) -> bytes:
        name = self.szProtocol.encode()
        chain = (*self.ProtocolChain, *(0,) * (MAX_PROTOCOL_CHAIN - len(self.ProtocolChain)))
        fixed = _FIXED.pack(
            _MAGIC,
            self.dwServiceFlags1,
            self.dwCatalogEntryId,
            0,
            self.ProviderId.bytes,
            len(self.ProtocolChain),
            *chain,
            self.iAddressFamily,
            self.iSocketType,
            self.iProtocol,
            len(name),
            len(self.dwProviderReserved),
        )
        return fixed + name + self.dwProviderReserved

    @classmethod
    def from_bytes(cls, data: bytes) -> WSAPROTOCOL_INFO:
        """Read what `bytes(info)` gave.

        Raises:
            WSAError: 10022, incomplete or corrupt (DUP-4).
        """
        try:
            magic, flags, entry, zero, provider, length, *rest = _FIXED.unpack_from(data)
            *chain, family, kind, protocol, name_size, size = rest
            name_end = _FIXED.size + name_size
            if (magic, zero) != (_MAGIC, 0) or length > MAX_PROTOCOL_CHAIN or name_end + size != len(data):
                raise WSAError(WSAEINVAL, "this is no protocol info, or not all of one")
            name = bytes(data[_FIXED.size : name_end]).decode()
        except (struct.error, UnicodeDecodeError, TypeError) as error:
            raise WSAError(WSAEINVAL, "this is no protocol info") from error
        links = tuple(chain[:length])
        return cls(flags, UUID(bytes=provider), entry, links, family, kind, protocol, name, bytes(data[name_end:]))


class Duplicate(NamedTuple):
    """What the base provider puts into the reserved field: the flags of the socket's creation, and its ticket."""

    dwFlags: int
    ticket: bytes


def seal(info: WSAPROTOCOL_INFO, duplicate: Duplicate) -> WSAPROTOCOL_INFO:
    """Return an entry as the info of a duplicate."""
    check = _checksum(info, duplicate)
    return replace(info, dwProviderReserved=_RESERVED.pack(check, duplicate.dwFlags) + duplicate.ticket)


def unseal(info: WSAPROTOCOL_INFO) -> Duplicate:
    """Return what the info of a duplicate stands for.

    Raises:
        WSAError: 10022, it is incomplete or corrupt. Nothing is used up.
    """
    reserved = info.dwProviderReserved
    if len(reserved) <= _RESERVED.size:
        raise WSAError(WSAEINVAL, "the protocol info is incomplete")
    check, flags = _RESERVED.unpack_from(reserved)
    duplicate = Duplicate(flags, reserved[_RESERVED.size :])
    if not hmac.compare_digest(check, _checksum(info, duplicate)):
        raise WSAError(WSAEINVAL, "the protocol info is corrupt")
    return duplicate


def _checksum(info: WSAPROTOCOL_INFO, duplicate: Duplicate) -> bytes:
    # Not the ids of the entry: each layer above the base provider puts its own in their place (DUP-22).
    facts = struct.pack("<iiiI", info.iAddressFamily, info.iSocketType, info.iProtocol, duplicate.dwFlags)
    return hashlib.sha256(facts + duplicate.ticket).digest()[:16]
