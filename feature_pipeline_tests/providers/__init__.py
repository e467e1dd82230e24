"""Providers of the outside world, as local HTTP servers that speak their protocols.

`server.ProviderServer` is the reusable part: routes, a log of what was asked, faults on demand. One
module per provider beside it says what that provider answers.
"""
