"""What exactly is measured: a small versioned file for each published protocol, and the user's own."""

from .protocol import Protocol, ProtocolError, list_protocols, load_protocol, protocol_fields, published_results


__all__ = ["Protocol", "ProtocolError", "list_protocols", "load_protocol", "protocol_fields", "published_results"]
