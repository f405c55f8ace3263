"""HTTP: the protocol, access enforcement, lifetime, command line. The only importer of aiohttp."""
