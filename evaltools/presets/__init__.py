"""Protocols that come with evaltools, as YAML values; `evaltools.protocols.presets` reads them."""
