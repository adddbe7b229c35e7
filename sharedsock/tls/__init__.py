"""FACE: TLS over a descriptor."""

from sharedsock.tls.face import TLSSocket, wrap_tls

__all__ = ["TLSSocket", "wrap_tls"]
