"""Terms that objectives are composed of: small frozen values and pure functions."""
